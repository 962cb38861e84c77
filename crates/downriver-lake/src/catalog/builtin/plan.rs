//! What a commit makes of a table's metadata. Decides only: reads and writes nothing.

use std::collections::HashMap;

use iceberg::spec::{
    FormatVersion, MAIN_BRANCH, SortOrder, TableMetadata, TableMetadataBuilder,
    UnboundPartitionSpec,
};
use iceberg::{MetadataLocation, TableCreation, TableRequirement, TableUpdate};

use super::super::{CatalogError, LoadedTable, TableName};

const FORMAT_VERSION: &str = "format-version";
const DELETE_AFTER_COMMIT: &str = "write.metadata.delete-after-commit.enabled";

/// A table after a commit.
#[derive(Debug)]
pub(super) enum Planned {
    /// Every update says what is so already.
    Same,
    Moved(Box<Next>),
}

#[derive(Debug)]
pub(super) struct Next {
    pub metadata: TableMetadata,
    /// A name that no file ever had.
    pub location: MetadataLocation,
    /// Metadata files that nothing names once the pointer has moved.
    pub expired: Vec<String>,
}

/// Checks the requirements and applies the updates. Without a current table the commit must assert that it
/// makes one, which is how a staged table is made; it lies at `place` unless an update says where.
pub(super) fn commit(
    name: &TableName,
    current: Option<&LoadedTable>,
    place: &str,
    requirements: &[TableRequirement],
    updates: Vec<TableUpdate>,
) -> Result<Planned, CatalogError> {
    for requirement in requirements {
        requirement
            .check(current.map(|table| &table.metadata))
            .map_err(|error| CatalogError::Conflict(format!("{name}: {}", error.message())))?;
    }
    let Some(current) = current else {
        if !requirements.contains(&TableRequirement::NotExist) {
            return Err(CatalogError::Conflict(format!("there is no table {name}")));
        }
        return first(name, place, updates).map(|next| Planned::Moved(Box::new(next)));
    };
    for update in &updates {
        fits(name, &current.metadata, update)?;
    }
    let location = current.metadata_location.clone();
    let built = apply(
        current.metadata.clone().into_builder(Some(location)),
        updates,
    )
    .and_then(TableMetadataBuilder::build)
    .map_err(|error| invalid(name, &error))?;
    if changes_nothing(&current.metadata, &built.changes) {
        return Ok(Planned::Same);
    }
    let forget = built.metadata.properties().get(DELETE_AFTER_COMMIT);
    let expired = match forget.map(String::as_str) {
        Some("false") => Vec::new(),
        _ => built
            .expired_metadata_logs
            .into_iter()
            .map(|entry| entry.metadata_file)
            .collect(),
    };
    let location = match current.metadata_location.parse::<MetadataLocation>() {
        Ok(previous) => previous
            .with_next_version()
            .with_new_metadata(&built.metadata),
        // Another catalog's way of naming.
        Err(_) => MetadataLocation::new_with_metadata(built.metadata.location(), &built.metadata),
    };
    Ok(Planned::Moved(Box::new(Next {
        metadata: built.metadata,
        location,
        expired,
    })))
}

/// A new table's metadata. The library gives the fields ids of its own, level by level from 1.
pub(super) fn draft(
    name: &TableName,
    place: &str,
    mut creation: TableCreation,
) -> Result<Next, CatalogError> {
    // Clients ask for a format by a property, which is not kept as one.
    if let Some(version) = creation.properties.remove(FORMAT_VERSION) {
        creation.format_version = match version.as_str() {
            "1" => FormatVersion::V1,
            "2" => FormatVersion::V2,
            "3" => FormatVersion::V3,
            _ => {
                return Err(CatalogError::Refused(format!(
                    "{name}: unknown format version {version:?}"
                )));
            }
        };
    }
    creation.location.get_or_insert_with(|| place.to_owned());
    creation
        .properties
        .entry(DELETE_AFTER_COMMIT.to_owned())
        .or_insert_with(|| "true".to_owned());
    let metadata = TableMetadataBuilder::from_table_creation(creation)
        .and_then(TableMetadataBuilder::build)
        .map_err(|error| invalid(name, &error))?
        .metadata;
    Ok(Next {
        location: MetadataLocation::new_with_metadata(metadata.location(), &metadata),
        metadata,
        expired: Vec::new(),
    })
}

/// The library has no builder for a table of which nothing is known, so the first schema, partition spec
/// and so on begin it and are then applied once more, which finds them there.
fn first(name: &TableName, place: &str, updates: Vec<TableUpdate>) -> Result<Next, CatalogError> {
    let mut schema = None;
    let mut spec: Option<UnboundPartitionSpec> = None;
    let mut order: Option<SortOrder> = None;
    let mut location = None;
    let mut format = FormatVersion::V2;
    for update in &updates {
        match update {
            TableUpdate::AddSchema { schema: it } => schema = schema.or_else(|| Some(it.clone())),
            TableUpdate::AddSpec { spec: it } => spec = spec.or_else(|| Some(it.clone())),
            TableUpdate::AddSortOrder { sort_order } => {
                order = order.or_else(|| Some(sort_order.clone()));
            }
            TableUpdate::SetLocation { location: it } => location = Some(it.clone()),
            TableUpdate::UpgradeFormatVersion { format_version } => format = *format_version,
            _ => {}
        }
    }
    let Some(schema) = schema else {
        return Err(CatalogError::Refused(format!(
            "{name}: a commit that makes a table must add a schema"
        )));
    };
    let creation = TableCreation {
        name: name.table.clone(),
        location,
        schema: schema.clone(),
        partition_spec: spec,
        sort_order: order,
        properties: HashMap::new(),
        format_version: format,
    };
    let begun = draft(name, place, creation)?.metadata;
    // Files of the staged table are written with these ids already.
    if begun.current_schema().as_struct() != schema.as_struct() {
        return Err(CatalogError::Refused(format!(
            "{name}: the field ids are not those that the catalog staged"
        )));
    }
    let metadata = apply(begun.into_builder(None), updates)
        .and_then(TableMetadataBuilder::build)
        .map_err(|error| invalid(name, &error))?
        .metadata;
    Ok(Next {
        location: MetadataLocation::new_with_metadata(metadata.location(), &metadata),
        metadata,
        expired: Vec::new(),
    })
}

fn apply(
    builder: TableMetadataBuilder,
    updates: Vec<TableUpdate>,
) -> iceberg::Result<TableMetadataBuilder> {
    updates
        .into_iter()
        .try_fold(builder, |builder, update| update.apply(builder))
}

fn invalid(name: &TableName, error: &iceberg::Error) -> CatalogError {
    CatalogError::Refused(format!("{name}: {}", error.message()))
}

/// Whether the update was made for the table as it is. What was made for an older one is a lost race, which
/// planning anew resolves, and not a mistake.
fn fits(name: &TableName, table: &TableMetadata, update: &TableUpdate) -> Result<(), CatalogError> {
    let stale = |what: String| Err(CatalogError::Conflict(format!("{name}: {what}")));
    match update {
        TableUpdate::AddSnapshot { snapshot } => {
            let id = snapshot.snapshot_id();
            if table.snapshot_by_id(id).is_some() {
                return stale(format!("snapshot {id} already exists"));
            }
            let (number, last) = (snapshot.sequence_number(), table.last_sequence_number());
            if table.format_version() != FormatVersion::V1
                && snapshot.parent_snapshot_id().is_some()
                && number <= last
            {
                return stale(format!(
                    "sequence number {number} of snapshot {id} is not after the last sequence number {last}"
                ));
            }
            if table.format_version() >= FormatVersion::V3
                && snapshot
                    .row_range()
                    .is_some_and(|(first, _)| first < table.next_row_id())
            {
                return stale(format!("the first row id of snapshot {id} is taken"));
            }
            Ok(())
        }
        TableUpdate::AssignUuid { uuid } if *uuid != table.uuid() => Err(CatalogError::Refused(
            format!("{name}: a table keeps its uuid"),
        )),
        _ => Ok(()),
    }
}

/// The library leaves out most changes that are none; these it counts.
fn changes_nothing(before: &TableMetadata, changes: &[TableUpdate]) -> bool {
    changes.iter().all(|change| match change {
        TableUpdate::SetProperties { updates } => updates
            .iter()
            .all(|(key, value)| before.properties().get(key) == Some(value)),
        TableUpdate::RemoveProperties { removals } => removals
            .iter()
            .all(|key| !before.properties().contains_key(key)),
        TableUpdate::RemoveSchemas { schema_ids } => schema_ids.is_empty(),
        TableUpdate::RemovePartitionSpecs { spec_ids } => spec_ids.is_empty(),
        TableUpdate::RemoveSnapshotRef { ref_name } => {
            ref_name == MAIN_BRANCH && before.current_snapshot_id().is_none()
        }
        _ => false,
    })
}

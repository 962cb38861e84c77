//! The shape of a table's rows at one point of its history, and the canonical type of each column.

use crate::pb;

/// Identifies a table for the life of its source; kept through a rename. PostgreSQL: the relation's oid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u32);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSchema {
    pub id: TableId,
    /// Dense for each table, from 1; 0 while it has not been registered.
    pub version: u32,
    pub namespace: String,
    pub name: String,
    pub columns: Vec<Column>,
    /// Ids of the columns by which rows are known, in key order: of the primary key, or of the index that is the replica
    /// identity. Empty when there is none.
    pub key: Vec<u32>,
    pub identity: ReplicaIdentity,
    /// Columns that are excluded at capture: no row has them.
    pub withheld: Vec<Column>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Never reused within a table. PostgreSQL: attnum.
    pub id: u32,
    pub name: String,
    pub ty: LogicalType,
    pub nullable: bool,
    pub source_type: String,
    pub cover: Cover,
    /// What a row has where an insert was logged without the column. `None`: not known, or not needed so far.
    pub default: Option<DefaultCell>,
}

/// A value, or that there is none.
#[derive(Clone, Debug, PartialEq)]
pub struct DefaultCell(pub pb::Cell);

/// No database takes what is no number for a default.
impl Eq for DefaultCell {}

/// What a rule says of a column's values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cover {
    /// No rule speaks of it.
    #[default]
    None,
    /// They are the source's because a rule says so.
    Shown,
    /// They were made into others before they reached the log.
    Masked(Masked),
    /// No row has them. A column that is withheld without this is excluded by a rule, and its number tells its place.
    Withheld(Withheld),
}

/// Of a column that is withheld.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// So many of the table's columns lie before it.
    pub place: u32,
    pub why: WhyWithheld,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyWithheld {
    /// A rule excludes it.
    Excluded,
    /// It is generated, and the source leaves it out of updates.
    Generated,
    /// It was excluded or masked under another name, and no rule speaks of this one.
    Renamed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    pub kind: MaskKind,
    /// Changes with the rule's parameters and key, and tells neither.
    pub rule: u64,
    /// The type of the source's values; the column's own is that of the masked ones.
    pub of: LogicalType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskKind {
    Null,
    Hash,
    Partial,
    Constant,
}

/// One canonical form per type, the same through snapshot and stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogicalType {
    Bool,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    /// Precision 0: unconstrained. Carried as the source's exact digits.
    Decimal {
        precision: u32,
        scale: i32,
    },
    Text,
    Bytes,
    Uuid,
    Json,
    /// Days since 1970-01-01.
    Date,
    /// Microseconds since midnight, 24:00:00 included.
    Time,
    /// Wall clock in microseconds since 1970-01-01.
    Timestamp,
    /// Instant in microseconds since 1970-01-01 UTC.
    TimestampTz,
    Interval,
    Enum {
        labels: Vec<String>,
    },
    Array(Box<LogicalType>),
    /// Not interpreted: the source's text.
    Other,
}

/// How a column's cells lie in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Physical {
    Bool,
    Int32,
    Int64,
    Float32,
    Float64,
    /// Length and bytes.
    Variable,
    /// Sixteen bytes each.
    Fixed16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    Default,
    Index,
    Full,
    Nothing,
}

/// A stored schema that this build cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("column {column:?} of table {table:?} has a type that this version does not know")]
    UnknownType { table: String, column: String },
    #[error(
        "column {column:?} of table {table:?} is masked in a way that this version does not know"
    )]
    UnknownMask { table: String, column: String },
    #[error(
        "column {column:?} of table {table:?} is withheld for a reason that this version does not know"
    )]
    UnknownWithheld { table: String, column: String },
    #[error("table {table:?} has a replica identity that this version does not know")]
    UnknownIdentity { table: String },
}

impl TableSchema {
    /// `namespace.name`.
    #[must_use]
    pub fn qualified_name(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    #[must_use]
    pub fn column_index(&self, id: u32) -> Option<usize> {
        self.columns.iter().position(|column| column.id == id)
    }

    /// Whether its rows are known by all that is in them: no key, and the stream brings whole old rows. Equal rows are
    /// counted.
    #[must_use]
    pub fn is_bag(&self) -> bool {
        self.key.is_empty() && self.identity == ReplicaIdentity::Full
    }

    /// Whether something tells its rows apart, or counts them.
    #[must_use]
    pub fn tells_rows(&self) -> bool {
        !self.key.is_empty() || self.is_bag()
    }

    /// Ids of the columns that tell rows apart: the key's, or all those of a bag.
    #[must_use]
    pub fn telling(&self) -> Vec<u32> {
        if self.is_bag() {
            return self.columns.iter().map(|column| column.id).collect();
        }
        self.key.clone()
    }

    /// Indexes into `columns` of the key, in key order.
    #[must_use]
    pub fn key_indexes(&self) -> Vec<usize> {
        self.key
            .iter()
            .filter_map(|id| self.column_index(*id))
            .collect()
    }

    /// The source's own columns: with those that are withheld, and as they are before any mask. In the table's order, if
    /// those that are withheld tell their places; else these come last.
    pub fn source_columns(&self) -> impl Iterator<Item = (&Column, &LogicalType)> {
        let mut columns: Vec<&Column> = self.columns.iter().collect();
        for withheld in &self.withheld {
            let place = withheld
                .why_withheld()
                .map(|withheld| withheld.place as usize);
            let last = columns.len();
            columns.insert(place.unwrap_or(last).min(last), withheld);
        }
        columns
            .into_iter()
            .map(|column| (column, column.source_ty()))
    }

    /// Whether rows of both can be told apart only by the version number.
    #[must_use]
    pub fn same_shape(&self, other: &Self) -> bool {
        Self {
            version: 0,
            ..self.clone()
        } == Self {
            version: 0,
            ..other.clone()
        }
    }

    #[must_use]
    pub fn to_pb(&self) -> pb::TableSchema {
        let identity = match self.identity {
            ReplicaIdentity::Default => pb::ReplicaIdentity::Default,
            ReplicaIdentity::Index => pb::ReplicaIdentity::Index,
            ReplicaIdentity::Full => pb::ReplicaIdentity::Full,
            ReplicaIdentity::Nothing => pb::ReplicaIdentity::Nothing,
        };
        pb::TableSchema {
            table_id: self.id.0,
            version: self.version,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            columns: self.columns.iter().map(Column::to_pb).collect(),
            key: self.key.clone(),
            identity: identity as i32,
            withheld: self.withheld.iter().map(Column::to_pb).collect(),
        }
    }

    /// # Errors
    /// A type or identity that this build does not know.
    pub fn from_pb(schema: &pb::TableSchema) -> Result<Self, SchemaError> {
        let identity = match schema.identity() {
            pb::ReplicaIdentity::Default => ReplicaIdentity::Default,
            pb::ReplicaIdentity::Index => ReplicaIdentity::Index,
            pb::ReplicaIdentity::Full => ReplicaIdentity::Full,
            pb::ReplicaIdentity::Nothing => ReplicaIdentity::Nothing,
            pb::ReplicaIdentity::Unspecified => {
                return Err(SchemaError::UnknownIdentity {
                    table: schema.name.clone(),
                });
            }
        };
        let columns = |columns: &[pb::Column]| {
            let columns = columns.iter();
            columns
                .map(|column| Column::from_pb(column, &schema.name))
                .collect::<Result<_, _>>()
        };
        Ok(Self {
            id: TableId(schema.table_id),
            version: schema.version,
            namespace: schema.namespace.clone(),
            name: schema.name.clone(),
            columns: columns(&schema.columns)?,
            key: schema.key.clone(),
            identity,
            withheld: columns(&schema.withheld)?,
        })
    }
}

impl Column {
    /// The type of the source's values.
    #[must_use]
    pub fn source_ty(&self) -> &LogicalType {
        match &self.cover {
            Cover::Masked(masked) => &masked.of,
            Cover::None | Cover::Shown | Cover::Withheld(_) => &self.ty,
        }
    }

    /// Why no row has it, and where it lies, if that is told.
    #[must_use]
    pub fn why_withheld(&self) -> Option<Withheld> {
        match self.cover {
            Cover::Withheld(withheld) => Some(withheld),
            Cover::None | Cover::Shown | Cover::Masked(_) => None,
        }
    }

    fn to_pb(&self) -> pb::Column {
        pb::Column {
            id: self.id,
            name: self.name.clone(),
            r#type: Some(self.ty.to_pb()),
            nullable: self.nullable,
            source_type: self.source_type.clone(),
            masked: match &self.cover {
                Cover::Masked(masked) => Some(masked.to_pb()),
                Cover::None | Cover::Shown | Cover::Withheld(_) => None,
            },
            shown: self.cover == Cover::Shown,
            withheld: self.why_withheld().map(Withheld::to_pb),
            default: self.default.as_ref().map(|default| default.0.clone()),
        }
    }

    fn from_pb(column: &pb::Column, table: &str) -> Result<Self, SchemaError> {
        let ty = column.r#type.as_ref().and_then(LogicalType::from_pb);
        let (table, named) = (|| table.to_owned(), || column.name.clone());
        let cover = match (&column.masked, &column.withheld) {
            (Some(masked), _) => Masked::from_pb(masked).map(Cover::Masked),
            (None, Some(withheld)) => {
                let withheld = Withheld::from_pb(withheld);
                let withheld = withheld.ok_or_else(|| SchemaError::UnknownWithheld {
                    table: table(),
                    column: named(),
                })?;
                Some(Cover::Withheld(withheld))
            }
            (None, None) if column.shown => Some(Cover::Shown),
            (None, None) => Some(Cover::None),
        };
        Ok(Self {
            id: column.id,
            name: column.name.clone(),
            ty: ty.ok_or_else(|| SchemaError::UnknownType {
                table: table(),
                column: named(),
            })?,
            nullable: column.nullable,
            source_type: column.source_type.clone(),
            cover: cover.ok_or_else(|| SchemaError::UnknownMask {
                table: table(),
                column: named(),
            })?,
            default: column.default.clone().map(DefaultCell),
        })
    }
}

impl Withheld {
    fn to_pb(self) -> pb::Withheld {
        let reason = match self.why {
            WhyWithheld::Excluded => pb::WithheldReason::Excluded,
            WhyWithheld::Generated => pb::WithheldReason::Generated,
            WhyWithheld::Renamed => pb::WithheldReason::Renamed,
        };
        pb::Withheld {
            place: self.place,
            reason: reason as i32,
        }
    }

    /// `None` for a reason that this build does not know.
    fn from_pb(withheld: &pb::Withheld) -> Option<Self> {
        Some(Self {
            place: withheld.place,
            why: match withheld.reason() {
                pb::WithheldReason::Excluded => WhyWithheld::Excluded,
                pb::WithheldReason::Generated => WhyWithheld::Generated,
                pb::WithheldReason::Renamed => WhyWithheld::Renamed,
                pb::WithheldReason::Unspecified => return None,
            },
        })
    }
}

impl Masked {
    fn to_pb(&self) -> pb::Masked {
        let kind = match self.kind {
            MaskKind::Null => pb::MaskKind::Null,
            MaskKind::Hash => pb::MaskKind::Hash,
            MaskKind::Partial => pb::MaskKind::Partial,
            MaskKind::Constant => pb::MaskKind::Constant,
        };
        pb::Masked {
            kind: kind as i32,
            rule: self.rule,
            of: Some(self.of.to_pb()),
        }
    }

    /// `None` for a mask that this build does not know.
    fn from_pb(masked: &pb::Masked) -> Option<Self> {
        Some(Self {
            kind: match masked.kind() {
                pb::MaskKind::Null => MaskKind::Null,
                pb::MaskKind::Hash => MaskKind::Hash,
                pb::MaskKind::Partial => MaskKind::Partial,
                pb::MaskKind::Constant => MaskKind::Constant,
                pb::MaskKind::Unspecified => return None,
            },
            rule: masked.rule,
            of: LogicalType::from_pb(masked.of.as_ref()?)?,
        })
    }
}

impl LogicalType {
    #[must_use]
    pub fn physical(&self) -> Physical {
        match self {
            Self::Bool => Physical::Bool,
            Self::Int16 | Self::Int32 | Self::Date => Physical::Int32,
            Self::Int64 | Self::Time | Self::Timestamp | Self::TimestampTz => Physical::Int64,
            Self::Float32 => Physical::Float32,
            Self::Float64 => Physical::Float64,
            Self::Uuid | Self::Interval => Physical::Fixed16,
            Self::Decimal { .. }
            | Self::Text
            | Self::Bytes
            | Self::Json
            | Self::Enum { .. }
            | Self::Array(_)
            | Self::Other => Physical::Variable,
        }
    }

    #[must_use]
    pub fn to_pb(&self) -> pb::LogicalType {
        use pb::SimpleType as S;
        use pb::logical_type::Kind;
        let simple = |s: S| Kind::Simple(s as i32);
        let kind = match self {
            Self::Bool => simple(S::Bool),
            Self::Int16 => simple(S::Int16),
            Self::Int32 => simple(S::Int32),
            Self::Int64 => simple(S::Int64),
            Self::Float32 => simple(S::Float32),
            Self::Float64 => simple(S::Float64),
            Self::Text => simple(S::Text),
            Self::Bytes => simple(S::Bytes),
            Self::Uuid => simple(S::Uuid),
            Self::Json => simple(S::Json),
            Self::Date => simple(S::Date),
            Self::Time => simple(S::Time),
            Self::Timestamp => simple(S::Timestamp),
            Self::TimestampTz => simple(S::TimestampTz),
            Self::Interval => simple(S::Interval),
            Self::Other => simple(S::Other),
            Self::Decimal { precision, scale } => Kind::Decimal(pb::DecimalType {
                precision: *precision,
                scale: *scale,
            }),
            Self::Enum { labels } => Kind::Enumeration(pb::EnumType {
                labels: labels.clone(),
            }),
            Self::Array(element) => Kind::Array(Box::new(element.to_pb())),
        };
        pb::LogicalType { kind: Some(kind) }
    }

    /// `None` for a type that this build does not know.
    #[must_use]
    pub fn from_pb(ty: &pb::LogicalType) -> Option<Self> {
        use pb::SimpleType as S;
        use pb::logical_type::Kind;
        Some(match ty.kind.as_ref()? {
            Kind::Simple(simple) => match S::try_from(*simple).ok()? {
                S::Bool => Self::Bool,
                S::Int16 => Self::Int16,
                S::Int32 => Self::Int32,
                S::Int64 => Self::Int64,
                S::Float32 => Self::Float32,
                S::Float64 => Self::Float64,
                S::Text => Self::Text,
                S::Bytes => Self::Bytes,
                S::Uuid => Self::Uuid,
                S::Json => Self::Json,
                S::Date => Self::Date,
                S::Time => Self::Time,
                S::Timestamp => Self::Timestamp,
                S::TimestampTz => Self::TimestampTz,
                S::Interval => Self::Interval,
                S::Other => Self::Other,
                S::Unspecified => return None,
            },
            Kind::Decimal(decimal) => Self::Decimal {
                precision: decimal.precision,
                scale: decimal.scale,
            },
            Kind::Enumeration(e) => Self::Enum {
                labels: e.labels.clone(),
            },
            Kind::Array(element) => Self::Array(Box::new(Self::from_pb(element)?)),
        })
    }
}

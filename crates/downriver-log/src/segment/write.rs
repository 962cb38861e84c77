//! Writes a segment to a local file, block by block, and puts it into the store.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use downriver_api::cluster::v1 as pb;
use downriver_event::{EncodedBlock, Epoch, Incarnation, SourcePosition, TableSchema};
use prost::Message as _;

use super::{FOOTER_FORMAT, MAGIC, now_us};
use crate::log::{ObjectRef, Payload, StoredBlock};
use crate::store::{ObjectStore, StoreError};

/// A segment being written. Dropping it removes its file.
#[derive(Debug)]
pub struct SegmentWriter {
    path: PathBuf,
    file: File,
    footer: pb::SegmentFooter,
    chain: blake3::Hasher,
    crc: u32,
    len: u64,
    events: u64,
}

impl SegmentWriter {
    /// # Errors
    /// The file cannot be made.
    pub fn create(
        folder: &Path,
        stream: &str,
        incarnation: Incarnation,
        epoch: Epoch,
    ) -> std::io::Result<Self> {
        let path = folder.join(format!("{}.segment", uuid::Uuid::now_v7()));
        Ok(Self {
            file: File::create_new(&path)?,
            path,
            footer: pb::SegmentFooter {
                format: FOOTER_FORMAT,
                stream: stream.to_owned(),
                incarnation: incarnation.0,
                epoch: epoch.0,
                ..pb::SegmentFooter::default()
            },
            chain: blake3::Hasher::new(),
            crc: 0,
            len: 0,
            events: 0,
        })
    }

    /// Writes a block that is not appended yet.
    ///
    /// # Errors
    /// The file cannot be written; the segment is of no use any more.
    pub fn write(&mut self, block: &EncodedBlock) -> std::io::Result<()> {
        self.write_frame(
            &block.frame,
            pb::IndexEntry {
                events: block.events,
                time_min_us: block.time_min_us,
                time_max_us: block.time_max_us,
                table_ids: block.tables.iter().map(|table| table.0).collect(),
                ..pb::IndexEntry::default()
            },
        )
    }

    /// Writes a block that was appended before, with what its append gave it.
    ///
    /// # Errors
    /// As [`SegmentWriter::write`].
    pub fn write_appended(
        &mut self,
        block: &StoredBlock,
        (time_min_us, time_max_us): (i64, i64),
        table_ids: Vec<u32>,
    ) -> std::io::Result<()> {
        self.write_frame(
            &block.frame,
            pb::IndexEntry {
                events: block.events,
                time_min_us,
                time_max_us,
                table_ids,
                position_after: block.position_after.as_ref().map(SourcePosition::to_pb),
                epoch: block.epoch.0,
                ..pb::IndexEntry::default()
            },
        )
    }

    /// `entry` says everything but the place.
    fn write_frame(&mut self, frame: &[u8], entry: pb::IndexEntry) -> std::io::Result<()> {
        let position = self.len;
        self.append(frame)?;
        self.chain.update(frame);
        let first_event = self.events;
        self.events += u64::from(entry.events);
        self.footer.blocks.push(pb::IndexEntry {
            first_event,
            position,
            len: u32::try_from(frame.len()).expect("a frame is under 4 GiB"),
            ..entry
        });
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Bytes of the blocks written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Finishes the segment and stores it under a key of its own. Of the schemas it keeps those of its tables.
    ///
    /// # Errors
    /// The file cannot be finished (`Unavailable`), or the store's.
    pub async fn put(
        mut self,
        store: &dyn ObjectStore,
        schemas: &[Arc<TableSchema>],
    ) -> Result<Payload, StoreError> {
        let footer_offset = self.finish(schemas).map_err(|error| {
            StoreError::Unavailable(format!("{}: {error}", self.path.display()))
        })?;
        let stream = &self.footer.stream;
        let (epoch, unique) = (self.footer.epoch, uuid::Uuid::now_v7());
        let key = format!(
            "log/{stream}/{}-{epoch:08x}-{unique}.seg",
            self.footer.incarnation
        );
        store.put_file(&key, &self.path).await?;
        let blocks = &self.footer.blocks;
        Ok(Payload::Object {
            object: ObjectRef {
                key,
                len: self.len,
                crc: self.crc,
                footer_offset,
                stored_us: now_us(),
            },
            events: self.events,
            time_min_us: blocks
                .iter()
                .map(|b| b.time_min_us)
                .min()
                .unwrap_or_default(),
            time_max_us: blocks
                .iter()
                .map(|b| b.time_max_us)
                .max()
                .unwrap_or_default(),
        })
    }

    fn finish(&mut self, schemas: &[Arc<TableSchema>]) -> std::io::Result<u64> {
        let footer_offset = self.len;
        let entries = self.footer.blocks.iter();
        let tables: BTreeSet<u32> = entries.flat_map(|e| e.table_ids.iter().copied()).collect();
        let used = schemas.iter().filter(|s| tables.contains(&s.id.0));
        self.footer.schemas = used.map(|schema| schema.to_pb()).collect();
        self.footer.chain_to = self.chain.finalize().as_bytes().to_vec().into();
        let mut footer = self.footer.encode_to_vec();
        let crc = crc32c::crc32c(&footer);
        let len = u32::try_from(footer.len()).map_err(std::io::Error::other)?;
        footer.extend_from_slice(&len.to_le_bytes());
        footer.extend_from_slice(&crc.to_le_bytes());
        footer.extend_from_slice(MAGIC);
        self.append(&footer)?;
        self.file.flush()?;
        Ok(footer_offset)
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

//! Commands on a stream's segments are taken only if the references are those that they were made from.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_event::{Incarnation, Lsn, Offset, SourcePosition, pb as event};
use downriver_log::journal::{Applied, Journal, Stream};

fn position(lsn: u64) -> Option<event::SourcePosition> {
    Some(SourcePosition::Postgres(Lsn(lsn)).to_pb())
}

fn object(key: &str) -> Option<pb::ObjectRef> {
    Some(pb::ObjectRef {
        key: key.into(),
        len: 10,
        crc: 1,
        footer_offset: 5,
        stored_us: key.parse().unwrap_or(100),
    })
}

/// A stream "s" of one segment an offset.
fn journal(segments: u64) -> Journal {
    let mut journal = Journal::default();
    let open = pb::OpenStream {
        stream: "s".into(),
        start: position(0),
        ..pb::OpenStream::default()
    };
    assert_eq!(journal.open(&open), Applied::Done);
    for base in 0..segments {
        let block = pb::BlockPayload {
            events: 1,
            payload: Some(pb::block_payload::Payload::Inline(Bytes::from_static(b"x"))),
            ..pb::BlockPayload::default()
        };
        let append = pb::AppendBlocks {
            stream: "s".into(),
            incarnation: 1,
            epoch: 1,
            base_offset: base,
            position_before: position(base),
            position_after: position(base + 1),
            blocks: vec![block],
            ..pb::AppendBlocks::default()
        };
        let next = Offset(base + 1);
        assert_eq!(journal.append(append, base), Applied::Appended { next });
        let seal = pb::SealSegment {
            stream: "s".into(),
            incarnation: 1,
            base_offset: base,
            end_offset: base + 1,
            object: object(&base.to_string()),
            time_min_us: base as i64,
            time_max_us: base as i64,
            ..pb::SealSegment::default()
        };
        assert_eq!(journal.seal(&seal), Applied::Done);
    }
    journal
}

fn merge(base_offset: u64, end_offset: u64, segments: u32) -> pb::MergeSegments {
    pb::MergeSegments {
        stream: "s".into(),
        incarnation: 1,
        base_offset,
        end_offset,
        segments,
        object: object(&format!("{base_offset}-{end_offset}")),
        ..pb::MergeSegments::default()
    }
}

fn fold(base_offset: u64, end_offset: u64, segments: u32) -> pb::FoldSegments {
    pb::FoldSegments {
        stream: "s".into(),
        incarnation: 1,
        base_offset,
        end_offset,
        segments,
        object: object("manifest"),
        ..pb::FoldSegments::default()
    }
}

fn keys(stream: &Stream) -> Vec<&str> {
    let keys = stream.segments.iter().map(|s| s.place.object.key.as_str());
    keys.collect()
}

fn garbage(stream: &Stream) -> Vec<(&str, u64)> {
    let garbage = stream.garbage.iter();
    garbage.map(|one| (one.key.as_str(), one.since)).collect()
}

#[test]
fn a_merge_puts_one_segment_in_the_place_of_those_it_was_made_from() {
    let mut journal = journal(6);
    assert_eq!(journal.merge(&merge(1, 4, 3), 9), Applied::Done);
    let stream = &journal.streams["s"];
    assert_eq!(keys(stream), ["0", "1-4", "4", "5"]);
    assert_eq!(garbage(stream), [("1", 9), ("2", 9), ("3", 9)]);
    let merged = &stream.segments[1];
    let place = &merged.place;
    assert_eq!((place.base, place.end), (Offset(1), Offset(4)));
    assert_eq!((merged.time_min_us, merged.time_max_us), (1, 3));
    assert_eq!(place.object.stored_us, 3, "the age is not begun again");
    let after = SourcePosition::Postgres(Lsn(4));
    assert_eq!(place.position_after, Some(after));
}

#[test]
fn a_command_made_from_other_references_changes_nothing() {
    let mut journal = journal(6);
    assert_eq!(journal.merge(&merge(1, 4, 3), 9), Applied::Done);
    // Made before that merge; twice; of another life; of no offsets.
    let mut other_life = merge(4, 6, 2);
    other_life.incarnation = 2;
    for stale in [
        merge(0, 4, 4),
        merge(1, 4, 3),
        merge(2, 5, 3),
        other_life,
        merge(4, 7, 3),
        merge(1, 1, 0),
    ] {
        assert_eq!(journal.merge(&stale, 9), Applied::Stale, "{stale:?}");
    }
    // A manifest lists the oldest.
    for stale in [fold(0, 4, 4), fold(1, 4, 1), fold(0, 3, 2)] {
        assert_eq!(journal.fold(&stale), Applied::Stale, "{stale:?}");
    }
    assert_eq!(keys(&journal.streams["s"]), ["0", "1-4", "4", "5"]);
    assert_eq!(journal.fold(&fold(0, 4, 2)), Applied::Done);
    assert_eq!(journal.merge(&merge(0, 4, 2), 9), Applied::Stale);
    assert_eq!(keys(&journal.streams["s"]), ["4", "5"]);
}

#[test]
fn a_manifest_is_forgotten_after_all_that_it_lists() {
    let mut journal = journal(6);
    assert_eq!(journal.fold(&fold(0, 4, 4)), Applied::Done);
    let trim = |offset| pb::TrimStream {
        stream: "s".into(),
        offset,
        incarnation: 1,
        ..pb::TrimStream::default()
    };
    let forget = pb::ForgetObjects {
        stream: "s".into(),
        keys: vec!["manifest".into(), "4".into()],
        ..pb::ForgetObjects::default()
    };
    assert_eq!(journal.trim(&trim(3)), Applied::Done);
    assert_eq!(journal.streams["s"].trimmed, Offset(3));
    journal.forget(&forget);
    assert_eq!(journal.streams["s"].manifests.len(), 1, "offset 3 is in it");
    assert_eq!(journal.trim(&trim(5)), Applied::Done);
    let stream = &journal.streams["s"];
    assert_eq!((stream.trimmed, keys(stream)), (Offset(5), vec!["5"]));
    assert_eq!(garbage(stream), [("4", 0)]);
    journal.forget(&forget);
    let stream = &journal.streams["s"];
    assert!(stream.manifests.is_empty() && stream.garbage.is_empty());
}

#[test]
fn a_stream_that_is_made_again_has_another_incarnation() {
    let mut journal = journal(2);
    let drop = pb::DropStream {
        stream: "s".into(),
        ..pb::DropStream::default()
    };
    assert_eq!(journal.drop_stream(&drop), Applied::Done);
    let open = pb::OpenStream {
        stream: "s".into(),
        ..pb::OpenStream::default()
    };
    assert_eq!(journal.open(&open), Applied::Done);
    assert_eq!(journal.streams["s"].incarnation, Incarnation(2));
    let trim = pb::TrimStream {
        stream: "s".into(),
        offset: 1,
        incarnation: 1,
        ..pb::TrimStream::default()
    };
    assert_eq!(journal.trim(&trim), Applied::Stale);
}

/// One inline block, appended at `base` under the journal's first epoch.
fn append(base: u64, before: u64, after: u64) -> pb::AppendBlocks {
    let block = pb::BlockPayload {
        events: 1,
        payload: Some(pb::block_payload::Payload::Inline(Bytes::from_static(b"x"))),
        ..pb::BlockPayload::default()
    };
    pb::AppendBlocks {
        stream: "s".into(),
        incarnation: 1,
        epoch: 1,
        base_offset: base,
        position_before: position(before),
        position_after: position(after),
        blocks: vec![block],
        ..pb::AppendBlocks::default()
    }
}

fn moved(append: pb::AppendBlocks, anew: bool) -> pb::MoveSource {
    pb::MoveSource {
        append: Some(append),
        identity: Bytes::from_static(b"another"),
        anew,
    }
}

fn seal(journal: &mut Journal, base: u64, end: u64) {
    let seal = pb::SealSegment {
        stream: "s".into(),
        incarnation: 1,
        base_offset: base,
        end_offset: end,
        object: object("1"),
        ..pb::SealSegment::default()
    };
    assert_eq!(journal.seal(&seal), Applied::Done);
}

#[test]
fn an_append_without_blocks_moves_what_is_acknowledged_and_no_block() {
    let mut journal = journal(0);
    let applied = journal.append(append(0, 0, 10), 1);
    assert_eq!(applied, Applied::Appended { next: Offset(1) });
    let idle = pb::AppendBlocks {
        blocks: Vec::new(),
        ..append(1, 10, 25)
    };
    let applied = journal.append(idle, 2);
    assert_eq!(applied, Applied::Appended { next: Offset(1) });
    // A transaction without a position of its own has its block's, and an offset's content never changes.
    let stream = &journal.streams["s"];
    let block = stream.unsealed[0].stored(&Bytes::new());
    assert_eq!(
        block.position_after,
        Some(SourcePosition::Postgres(Lsn(10)))
    );
    assert_eq!(
        stream.sealed_position,
        Some(SourcePosition::Postgres(Lsn(0)))
    );
    seal(&mut journal, 0, 1);
    let stream = &journal.streams["s"];
    let place = &stream.segments[0].place;
    assert_eq!(
        place.position_after,
        Some(SourcePosition::Postgres(Lsn(10)))
    );
    assert_eq!(
        stream.sealed_position,
        Some(SourcePosition::Postgres(Lsn(25)))
    );
}

#[test]
fn a_source_that_moved_acknowledges_nothing_that_was_sealed_before() {
    let mut journal = journal(2);
    // Unsealed when the move comes, and sealed after it.
    let next = Offset(3);
    assert_eq!(
        journal.append(append(2, 2, 90), 2),
        Applied::Appended { next }
    );
    // To a smaller position: the server has left its timeline.
    let next = Offset(4);
    let applied = journal.move_source(moved(append(3, 90, 50), true), 3);
    assert_eq!(applied, Applied::Appended { next });
    let at = |lsn| Some(SourcePosition::Postgres(Lsn(lsn)));
    let stream = &journal.streams["s"];
    assert_eq!(stream.identity, Bytes::from_static(b"another"));
    assert_eq!(
        (&stream.position, &stream.sealed_position),
        (&at(50), &None)
    );
    seal(&mut journal, 2, 3);
    assert_eq!(journal.streams["s"].sealed_position, None);
    seal(&mut journal, 3, 4);
    assert_eq!(journal.streams["s"].sealed_position, at(50));
}

#[test]
fn a_move_is_taken_as_an_append_is_or_changes_nothing() {
    let mut journal = journal(2);
    let rejected = journal.move_source(moved(append(2, 1, 50), true), 2);
    assert!(matches!(rejected, Applied::Rejected { .. }), "{rejected:?}");
    let mut unseen = append(2, 2, 50);
    unseen.blocks.clear();
    let invalid = journal.move_source(moved(unseen.clone(), true), 2);
    assert!(matches!(invalid, Applied::Invalid(_)), "{invalid:?}");
    let at = |lsn| Some(SourcePosition::Postgres(Lsn(lsn)));
    let stream = &journal.streams["s"];
    assert_eq!(
        (&stream.position, &stream.sealed_position),
        (&at(2), &at(2))
    );
    assert!(stream.identity.is_empty());
    // The same history under another name needs no event.
    unseen.position_after = position(2);
    let next = Offset(2);
    let applied = journal.move_source(moved(unseen, false), 2);
    assert_eq!(applied, Applied::Appended { next });
    let stream = &journal.streams["s"];
    assert_eq!(stream.identity, Bytes::from_static(b"another"));
    assert_eq!(stream.sealed_position, at(2));
}

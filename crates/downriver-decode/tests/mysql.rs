//! Events that no server of the tests sends.

use downriver_decode::mysql::decoder::{BinlogDecoder, DecodeError, Decoded, Reached};
use downriver_event::BinlogPlace;
use downriver_event::block::BlockBuilder;

fn event(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut event = vec![0; 4];
    event.push(kind);
    event.extend([1, 0, 0, 0]);
    event.extend(u32::try_from(19 + body.len()).expect("small").to_le_bytes());
    event.extend([0; 6]);
    event.extend(body);
    event
}

fn query(text: &str) -> Vec<u8> {
    let mut body = vec![0; 4 + 4 + 1 + 2 + 2];
    body.push(0);
    body.extend(text.as_bytes());
    event(2, &body)
}

/// Of server 1 of domain 0, not standalone.
fn gtid(sequence: u64) -> Vec<u8> {
    let mut body = sequence.to_le_bytes().to_vec();
    body.extend([0; 11]);
    event(162, &body)
}

fn decoder(reached: &str) -> BinlogDecoder {
    let place = BinlogPlace {
        file: "binlog.000001".into(),
        position: 4,
    };
    BinlogDecoder::new(
        Reached::Mariadb(reached.parse().expect("a position")),
        place,
    )
}

#[test]
fn statements_within_a_contained_transaction_are_passed_with_it() -> Result<(), DecodeError> {
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    decoder.decode(&gtid(7), &mut out)?;
    assert_eq!(
        decoder.decode(&query("SAVEPOINT a"), &mut out)?,
        Decoded::Passed
    );
    assert!(decoder.in_transaction());
    let ended = decoder.decode(&query("ROLLBACK"), &mut out)?;
    assert!(matches!(ended, Decoded::Commit(committed) if committed.events == 0));
    assert!(!decoder.in_transaction() && out.cut().is_none());
    // The next one is not contained.
    decoder.decode(&gtid(8), &mut out)?;
    assert_eq!(
        decoder.decode(&query("SAVEPOINT a"), &mut out)?,
        Decoded::Passed
    );
    let error = decoder.decode(&query("ROLLBACK TO a"), &mut out);
    assert!(matches!(error, Err(DecodeError::Unsupported { .. })));
    Ok(())
}

#[test]
fn a_table_may_be_made_inside_the_transaction_of_its_rows() -> Result<(), DecodeError> {
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    decoder.decode(&gtid(8), &mut out)?;
    let made = query("CREATE TABLE `t` (`a` int) START TRANSACTION");
    let made = decoder.decode(&made, &mut out)?;
    assert!(matches!(made, Decoded::Statement(_)) && decoder.in_transaction());
    let error = decoder.decode(&query("INSERT INTO t VALUES (1)"), &mut out);
    assert!(matches!(error, Err(DecodeError::Unsupported { .. })));
    Ok(())
}

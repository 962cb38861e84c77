//! Tables that fit a terminal.

use downriver_event::civil;

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..header.len())
        .map(|at| {
            let cells = rows.iter().map(|row| row[at].chars().count());
            cells.chain([header[at].len()]).max().unwrap_or_default()
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(header.to_vec())];
    lines.extend(
        rows.iter()
            .map(|row| line(row.iter().map(String::as_str).collect())),
    );
    lines.join("\n") + "\n"
}

/// Microseconds since 1970 as ISO 8601 in UTC.
pub(super) fn timestamp(micros: i64) -> String {
    let days = micros.div_euclid(86_400_000_000);
    format!(
        "{}T{}Z",
        date(days),
        time(micros.rem_euclid(86_400_000_000))
    )
}

/// Days since 1970 as a proleptic Gregorian date; years before 1 as ISO 8601 counts them (0000 is 1 BC).
pub(super) fn date(days: i64) -> String {
    let (year, month, day) = civil::of_days(days);
    let sign = if year < 0 { "-" } else { "" };
    format!("{sign}{:04}-{month:02}-{day:02}", year.abs())
}

/// Microseconds since midnight.
pub(super) fn time(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let clock = format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    match micros % 1_000_000 {
        0 => clock,
        fraction => format!("{clock}.{fraction:06}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_iso_8601() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(-719_469), "0000-02-29");
        assert_eq!(time(86_400_000_000), "24:00:00");
    }
}

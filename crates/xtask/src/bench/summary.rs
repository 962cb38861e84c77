//! What a reader's rounds come to, and what the architecture asks of it.

use anyhow::Result;
use serde::Serialize;

use super::measure::Reading;
use super::readers::Reader;
use super::server::Database;
use super::workloads::{Shape, Workload};

/// One reader's try at a backlog.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) round: u32,
    pub(super) reader: Reader,
    reading: Option<Reading>,
    pub(super) failure: Option<String>,
}

/// Medians over the rounds of one reader.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) reader: Reader,
    runs: usize,
    seconds: f64,
    rows_per_second: f64,
    cpu_seconds_per_million: f64,
    sealed_cpu_seconds_per_million: Option<f64>,
    server_cpu_seconds_per_million: f64,
    peak_rss_bytes_max: u64,
    idle_rss_bytes: Option<f64>,
    pub(super) others_share_max: f64,
    /// Median of each round's quotient, so that a slow minute of the machine is in both numbers.
    rate_of_reference: Option<f64>,
    cpu_of_reference: Option<f64>,
}

/// What the architecture asks of a reader, at scale 1 and of a release build.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    cpu_seconds_per_million_max: Option<f64>,
    rate_of_reference_min: Option<f64>,
    rows_per_second_min: Option<f64>,
    peak_rss_bytes_max: Option<u64>,
}

pub(super) fn budget(workload: Workload, reader: Reader) -> Option<Budget> {
    let none = Budget {
        cpu_seconds_per_million_max: None,
        rate_of_reference_min: None,
        rows_per_second_min: None,
        peak_rss_bytes_max: None,
    };
    let postgres_log = |cpu| Budget {
        cpu_seconds_per_million_max: Some(cpu),
        rate_of_reference_min: Some(0.8),
        ..none
    };
    // Its reference decodes nothing and is no measure.
    let mysql_log = |cpu, rate| Budget {
        cpu_seconds_per_million_max: Some(cpu),
        rows_per_second_min: Some(rate),
        ..none
    };
    let flat = Budget {
        peak_rss_bytes_max: Some(256 << 20),
        ..none
    };
    match (workload.database, workload.shape, reader) {
        (Database::Postgres, Shape::Inserts | Shape::OneTransaction, Reader::Log) => {
            Some(postgres_log(3.0))
        }
        (Database::Postgres, Shape::Mixed, Reader::Log) => Some(postgres_log(4.5)),
        (Database::Postgres, Shape::Mixed, Reader::Lake) => Some(Budget {
            cpu_seconds_per_million_max: Some(10.0),
            ..none
        }),
        (Database::Mysql, Shape::Inserts, Reader::Log) => Some(mysql_log(2.0, 250_000.0)),
        (Database::Mysql, Shape::Mixed, Reader::Log) => Some(mysql_log(6.0, 150_000.0)),
        (Database::Mysql, Shape::OneTransaction, Reader::Log)
        | (_, Shape::OneTransaction, Reader::Lake) => Some(flat),
        (_, Shape::Snapshot, Reader::Lake) => Some(Budget {
            cpu_seconds_per_million_max: Some(3.0),
            rows_per_second_min: Some(300_000.0),
            ..none
        }),
        _ => None,
    }
}

impl Budget {
    /// One sentence a demand, with what was seen.
    pub(super) fn against(&self, seen: &Summary) -> Vec<String> {
        let met = |is_met: bool| if is_met { "met" } else { "missed" };
        let mut lines = Vec::new();
        if let Some(max) = self.cpu_seconds_per_million_max {
            let cpu = seen.cpu_seconds_per_million;
            lines.push(format!(
                "CPU {cpu:.2} of at most {max:.1} s/M: {}",
                met(cpu <= max)
            ));
        }
        if let (Some(min), Some(rate)) = (self.rate_of_reference_min, seen.rate_of_reference) {
            lines.push(format!(
                "rate {rate:.2} of at least {min:.1} of the reference: {}",
                met(rate >= min)
            ));
        }
        if let Some(min) = self.rows_per_second_min {
            let rate = seen.rows_per_second;
            lines.push(format!(
                "{} of at least {} rows/s: {}",
                grouped(rate),
                grouped(min),
                met(rate >= min)
            ));
        }
        if let Some(max) = self.peak_rss_bytes_max {
            let peak = seen.peak_rss_bytes_max;
            lines.push(format!(
                "peak RSS {} of at most {} MiB: {}",
                peak >> 20,
                max >> 20,
                met(peak <= max)
            ));
        }
        lines
    }
}

impl Run {
    pub(super) fn new(round: u32, reader: Reader, result: Result<Reading>) -> Self {
        let (reading, failure) = match result {
            Ok(reading) => (Some(reading), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Self {
            round,
            reader,
            reading,
            failure,
        }
    }

    pub(super) fn line(&self, changes: u64) -> String {
        let name = self.reader.name();
        match (&self.reading, &self.failure) {
            (Some(reading), _) => format!(
                "{name}: {:.2} s, {} rows/s, {:.2} CPU s/M",
                reading.seconds,
                grouped(changes as f64 / reading.seconds),
                per_million(reading.cpu_seconds, changes)
            ),
            (None, failure) => format!(
                "{name} failed: {}",
                failure.as_deref().map_or("", first_line)
            ),
        }
    }
}

impl Summary {
    /// `None` when no run reached the end.
    pub(super) fn of(reader: Reader, changes: u64, runs: &[Run]) -> Option<Self> {
        let of = |reader: Reader| {
            runs.iter()
                .filter(move |run| run.reader == reader)
                .filter_map(|run| Some((run.round, run.reading.as_ref()?)))
        };
        let readings: Vec<&Reading> = of(reader).map(|(_, reading)| reading).collect();
        let over = |value: &dyn Fn(&Reading) -> Option<f64>| {
            median(
                readings
                    .iter()
                    .filter_map(|reading| value(reading))
                    .collect(),
            )
        };
        let per_million = |seconds: f64| per_million(seconds, changes);
        let against = |quotient: &dyn Fn(&Reading, &Reading) -> f64| {
            let rounds = of(reader).filter_map(|(round, reading)| {
                let mut references = runs.iter().filter(|run| run.reader.is_reference());
                let reference = references.find(|run| run.round == round)?;
                Some(quotient(reading, reference.reading.as_ref()?))
            });
            median(rounds.collect())
        };
        Some(Self {
            reader,
            runs: readings.len(),
            seconds: over(&|r| Some(r.seconds))?,
            rows_per_second: over(&|r| Some(changes as f64 / r.seconds))?,
            cpu_seconds_per_million: over(&|r| Some(per_million(r.cpu_seconds)))?,
            sealed_cpu_seconds_per_million: over(&|r| r.sealed_cpu_seconds.map(per_million)),
            server_cpu_seconds_per_million: over(&|r| Some(per_million(r.server_cpu_seconds)))?,
            peak_rss_bytes_max: readings.iter().map(|r| r.peak_rss_bytes).max()?,
            idle_rss_bytes: over(&|r| r.idle_rss_bytes.map(|bytes| bytes as f64)),
            others_share_max: readings.iter().map(|r| r.others_share).fold(0.0, f64::max),
            rate_of_reference: against(&|own, reference| reference.seconds / own.seconds),
            cpu_of_reference: against(&|own, reference| own.cpu_seconds / reference.cpu_seconds),
        })
    }

    pub(super) fn cells(&self) -> [String; 8] {
        let or_dash = |value: Option<f64>| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
        };
        [
            format!("{:.2}", self.seconds),
            grouped(self.rows_per_second),
            or_dash(self.rate_of_reference),
            format!("{:.2}", self.cpu_seconds_per_million),
            or_dash(self.sealed_cpu_seconds_per_million),
            format!("{:.2}", self.server_cpu_seconds_per_million),
            (self.peak_rss_bytes_max >> 20).to_string(),
            format!("{:.0} %", self.others_share_max * 100.0),
        ]
    }
}

/// The whole of a failure, with what was applied, is in the JSON.
pub(super) fn first_line(failure: &str) -> &str {
    failure.lines().next().unwrap_or_default()
}

fn per_million(seconds: f64, changes: u64) -> f64 {
    seconds / (changes as f64 / 1e6)
}

/// Of an even number, the mean of the middle two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (above, below) = (
        values.get(values.len() / 2)?,
        values.get(values.len().checked_sub(1)? / 2)?,
    );
    Some(f64::midpoint(*above, *below))
}

/// "1,234,567".
pub(super) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(round: u32, reader: Reader, seconds: f64) -> Run {
        Run::new(
            round,
            reader,
            Ok(Reading {
                seconds,
                cpu_seconds: seconds / 2.0,
                server_cpu_seconds: seconds,
                peak_rss_bytes: 10 << 20,
                others_share: 0.0,
                idle_rss_bytes: None,
                sealed_cpu_seconds: None,
                sealed_after_seconds: None,
            }),
        )
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_the_medians() {
        let runs = [
            run(1, Reader::Recvlogical, 10.0),
            run(1, Reader::Log, 5.0),
            run(2, Reader::Recvlogical, 30.0),
            run(2, Reader::Log, 10.0),
            run(3, Reader::Recvlogical, 20.0),
            run(3, Reader::Log, 20.0),
        ];
        let seen = Summary::of(Reader::Log, 1_000_000, &runs).unwrap();
        assert_eq!(seen.rate_of_reference, Some(2.0));
        assert_eq!(seen.seconds, 10.0);
        assert_eq!(seen.cpu_seconds_per_million, 5.0);
    }

    #[test]
    fn a_failed_run_is_not_in_the_medians() {
        let runs = [
            run(1, Reader::Log, 4.0),
            Run::new(2, Reader::Log, Err(anyhow::anyhow!("lost"))),
        ];
        let seen = Summary::of(Reader::Log, 1_000_000, &runs).unwrap();
        assert_eq!((seen.runs, seen.seconds), (1, 4.0));
        assert_eq!(seen.rate_of_reference, None);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0.4), "0");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
    }
}

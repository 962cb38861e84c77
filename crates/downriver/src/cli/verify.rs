//! verify: progress while it runs, on standard error; then a verdict for each table, on standard output.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use downriver_api::admin::v1 as pb;
use serde_json::{Value, json};

use super::client::{Client, Failure, print_problem};
use super::pipelines::Selection;
use super::show::{add_problem, print_value};
use super::{Output, render};

/// How often progress is shown where it cannot be shown in place.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub(super) async fn run(mut client: Client, selection: Selection) -> Result<(), Failure> {
    let request = pb::VerifyRequest {
        pipeline: selection.pipeline,
        tables: selection.tables,
    };
    let mut responses = client.admin.verify(request).await?.into_inner();
    let mut verdicts = BTreeMap::new();
    let mut progress = Progress::new();
    while let Some(response) = responses.message().await? {
        progress.show(&response)?;
        if let Some(verdict) = response.verdict {
            verdicts.insert(response.table, verdict);
        }
    }
    progress.clear()?;
    match selection.output {
        Output::Table => print_table(&verdicts)?,
        output => {
            let values = verdicts.iter().map(|(table, v)| verdict_json(table, v));
            print_value(&values.collect(), output)?;
        }
    }
    let equal = verdicts.values().all(|verdict| verdict.equal);
    if equal { Ok(()) } else { Err(Failure::Silent) }
}

/// One line in place on a terminal, a line now and then otherwise.
struct Progress {
    in_place: bool,
    table: String,
    began: Instant,
    shown: Instant,
}

impl Progress {
    fn new() -> Self {
        Self {
            in_place: std::io::stderr().is_terminal(),
            table: String::new(),
            began: Instant::now(),
            shown: Instant::now(),
        }
    }

    fn show(&mut self, response: &pb::VerifyResponse) -> Result<(), Failure> {
        if self.table != response.table {
            self.table.clone_from(&response.table);
            self.began = Instant::now();
        }
        if response.verdict.is_some() || (!self.in_place && self.shown.elapsed() < LINE_EVERY) {
            return Ok(());
        }
        self.shown = Instant::now();
        let line = progress_line(response, self.began.elapsed());
        let mut error = std::io::stderr();
        if self.in_place {
            write!(error, "\r\x1b[K{line}")?;
            error.flush()?;
        } else {
            writeln!(error, "{line}")?;
        }
        Ok(())
    }

    fn clear(&self) -> Result<(), Failure> {
        if self.in_place {
            write!(std::io::stderr(), "\r\x1b[K")?;
        }
        Ok(())
    }
}

fn progress_line(response: &pb::VerifyResponse, elapsed: Duration) -> String {
    let (done, estimated) = (response.rows_compared, response.rows_estimated);
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let left = match estimated.checked_sub(done) {
        Some(left) if rate > 0.0 && left > 0 => format!(", {:.0} s left", left as f64 / rate),
        _ => String::new(),
    };
    format!(
        "{}: {done} of about {} rows, {rate:.0} rows/s{left}",
        response.table,
        estimated.max(done)
    )
}

fn print_table(verdicts: &BTreeMap<String, pb::TableVerdict>) -> Result<(), Failure> {
    let header = [
        "TABLE",
        "EQUAL",
        "SOURCE ROWS",
        "TARGET ROWS",
        "MISSING",
        "UNEXPECTED",
        "DIFFERENT",
    ];
    let rows = verdicts.iter().map(|(table, verdict)| {
        vec![
            table.clone(),
            match (&verdict.problem, verdict.equal) {
                (Some(_), _) => "not compared",
                (None, true) => "yes",
                (None, false) => "NO",
            }
            .to_owned(),
            verdict.source_rows.to_string(),
            verdict.target_rows.to_string(),
            verdict.missing.to_string(),
            verdict.unexpected.to_string(),
            verdict.different.to_string(),
        ]
    });
    let mut text = render::table(&header, &rows.collect::<Vec<_>>());
    for (table, verdict) in verdicts {
        for example in &verdict.examples {
            text.push_str(&format!("{table}: {example}\n"));
        }
    }
    std::io::stdout().write_all(text.as_bytes())?;
    for verdict in verdicts.values() {
        if let Some(problem) = &verdict.problem {
            print_problem("error", problem);
        }
    }
    Ok(())
}

fn verdict_json(table: &str, verdict: &pb::TableVerdict) -> Value {
    let example = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    let examples: Vec<Value> = verdict.examples.iter().map(example).collect();
    let mut value = json!({
        "table": table,
        "equal": verdict.equal,
        "source_rows": verdict.source_rows,
        "target_rows": verdict.target_rows,
        "missing": verdict.missing,
        "unexpected": verdict.unexpected,
        "different": verdict.different,
        "examples": examples,
    });
    add_problem(&mut value, verdict.problem.as_ref());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_rows_rate_and_what_is_left() {
        let response = |rows_compared, rows_estimated| pb::VerifyResponse {
            table: "public.orders".into(),
            rows_compared,
            rows_estimated,
            verdict: None,
        };
        assert_eq!(
            progress_line(&response(500, 2_000), Duration::from_secs(5)),
            "public.orders: 500 of about 2000 rows, 100 rows/s, 15 s left"
        );
        assert_eq!(
            progress_line(&response(300, 0), Duration::from_secs(3)),
            "public.orders: 300 of about 300 rows, 100 rows/s"
        );
    }
}

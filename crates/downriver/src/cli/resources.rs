//! apply, delete, check: files of resources, and what becomes of them.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use downriver_api::admin::v1 as pb;
use downriver_service::spec::{Document, read_documents};
use serde_json::json;

use super::client::{Client, Failure, print_problem};
use super::groups;
use super::show::{add_problem, kind_name, print_value};
use super::{KindName, Output};

fn resources(file: &Path) -> Result<Vec<pb::Resource>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
    read_documents(&text)?.into_iter().map(resource).collect()
}

fn resource(document: Document) -> Result<pb::Resource, Failure> {
    let kind = match document.kind.as_str() {
        "Source" => pb::Kind::Source,
        "Sink" => pb::Kind::Sink,
        "Pipeline" => pb::Kind::Pipeline,
        other => {
            return Err(Failure::Usage(format!(
                "kind {other:?} is not known: use Source, Sink or Pipeline"
            )));
        }
    };
    Ok(pb::Resource {
        kind: kind as i32,
        name: document.name,
        spec_json: document.spec.to_string(),
        ..pb::Resource::default()
    })
}

pub(super) async fn apply(
    mut client: Client,
    file: &Path,
    dry_run: bool,
    output: Output,
) -> Result<(), Failure> {
    let resources = resources(file)?;
    let plan = client
        .admin
        .plan(pb::PlanRequest {
            resources: resources.clone(),
        })
        .await?
        .into_inner();
    for warning in &plan.warnings {
        print_problem("warning", warning);
    }
    if !plan.problems.is_empty() {
        return Err(Failure::Problems(plan.problems));
    }
    if output == Output::Table {
        for change in &plan.changes {
            writeln!(
                std::io::stdout(),
                "{} {}: {}",
                kind_name(change.kind),
                change.name,
                change.action
            )?;
            for line in change.difference.lines() {
                writeln!(std::io::stdout(), "  {line}")?;
            }
        }
    }
    let changes = plan
        .changes
        .iter()
        .any(|change| change.action != "unchanged");
    if !dry_run && changes {
        client.admin.apply(pb::ApplyRequest { resources }).await?;
    }
    if output == Output::Table {
        return Ok(());
    }
    let changes = plan.changes.iter().map(|change| {
        let difference: Vec<&str> = change.difference.lines().collect();
        json!({
            "kind": kind_name(change.kind),
            "name": change.name,
            "action": change.action,
            "difference": difference,
        })
    });
    print_value(&changes.collect(), output)
}

pub(super) async fn delete(
    mut client: Client,
    kind: KindName,
    name: &str,
    yes: bool,
    output: Output,
) -> Result<(), Failure> {
    let Some(kind) = kind.resource() else {
        return Err(match kind {
            KindName::Tables => Failure::Usage(format!(
                "a table is not deleted here: exclude it from the source with \"!{name}\""
            )),
            KindName::Groups => return groups::delete(client, name).await,
            _ => Failure::Usage("a node is taken out with downriver cluster remove".into()),
        });
    };
    let request = |dry_run| pb::DeleteRequest {
        kind: kind as i32,
        name: name.to_owned(),
        etag: String::new(),
        dry_run,
    };
    let would = client.admin.delete(request(true)).await?.into_inner();
    let word = kind_name(kind as i32);
    if output == Output::Table {
        writeln!(std::io::stdout(), "deleting {word} {name} drops:")?;
        for dropped in &would.dropped {
            writeln!(std::io::stdout(), "  {dropped}")?;
        }
    }
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(Failure::Usage(
                "nobody can be asked without a terminal: give --yes".into(),
            ));
        }
        write!(std::io::stdout(), "delete it? [y/N] ")?;
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !answer.trim().eq_ignore_ascii_case("y") {
            return Err(Failure::Other("nothing was deleted".into()));
        }
    }
    let deleted = client.admin.delete(request(false)).await?.into_inner();
    if output == Output::Table {
        writeln!(std::io::stdout(), "deleted")?;
        return Ok(());
    }
    let value = json!({ "kind": word, "name": name, "dropped": deleted.dropped });
    print_value(&value, output)
}

pub(super) async fn check(mut client: Client, file: &Path, output: Output) -> Result<(), Failure> {
    let resources = resources(file)?;
    let findings = client
        .admin
        .check(pb::CheckRequest { resources })
        .await?
        .into_inner()
        .findings;
    let failed = findings.iter().any(|finding| finding.severity == "error");
    if output == Output::Table {
        for finding in &findings {
            match &finding.problem {
                Some(problem) => print_problem(&finding.severity, problem),
                None => writeln!(std::io::stdout(), "ok {}", finding.subject)?,
            }
        }
    } else {
        let value = findings.iter().map(|finding| {
            let mut value = json!({ "severity": finding.severity, "subject": finding.subject });
            add_problem(&mut value, finding.problem.as_ref());
            value
        });
        print_value(&value.collect(), output)?;
    }
    if failed { Err(Failure::Silent) } else { Ok(()) }
}

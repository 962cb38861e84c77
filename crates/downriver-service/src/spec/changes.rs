//! `schema_changes`: what a pipeline does when a table of its source changes, for all kinds of changes or for each.

use downriver_event::change::{ChangeKind, ChangePolicies, ChangePolicy};
use downriver_event::problem::Problem;
use serde_json::Value;

use super::at;

const FIELD: &str = "schema_changes";
const DEFAULT: &str = "default";

pub(super) fn parse(value: Option<&Value>) -> Result<ChangePolicies, Problem> {
    let kinds = match value {
        None | Some(Value::Null) => return Ok(ChangePolicies::default()),
        Some(Value::Object(kinds)) => kinds,
        Some(all) => {
            let policies = ChangePolicies::all(policy(all, FIELD)?);
            return check(policies, |_| FIELD.to_owned());
        }
    };
    if let Some(unknown) = kinds.keys().find(|name| !is_known(name)) {
        let known = ChangeKind::ALL.map(ChangeKind::name).join(", ");
        let problem = Problem::new(
            "DR-2040",
            format!("{unknown:?} is no kind of schema change"),
            format!("use {known}, or {DEFAULT} for all that are not named"),
        );
        return Err(at(&format!("{FIELD}.{unknown}"), problem));
    }
    let of = |name: &str| {
        let value = kinds.get(name);
        value.map(|value| policy(value, &format!("{FIELD}.{name}")))
    };
    let mut policies = ChangePolicies::all(of(DEFAULT).transpose()?.unwrap_or_default());
    for kind in ChangeKind::ALL {
        if let Some(policy) = of(kind.name()) {
            policies = policies.with(kind, policy?);
        }
    }
    check(policies, |kind| match kinds.contains_key(kind.name()) {
        true => format!("{FIELD}.{}", kind.name()),
        false => format!("{FIELD}.{DEFAULT}"),
    })
}

/// What is ignored can be.
fn check(
    policies: ChangePolicies,
    field: impl Fn(ChangeKind) -> String,
) -> Result<ChangePolicies, Problem> {
    let ignored =
        |kind: &ChangeKind| policies.of(*kind) == ChangePolicy::Ignore && !kind.may_be_ignored();
    let Some(kind) = ChangeKind::ALL.into_iter().find(ignored) else {
        return Ok(policies);
    };
    let may = ChangeKind::ALL
        .into_iter()
        .filter(|kind| kind.may_be_ignored());
    let may: Vec<String> = may.map(|kind| format!("{}: ignore", kind.name())).collect();
    let problem = Problem::new(
        "DR-2041",
        format!(
            "{} cannot be ignored: rows would not be right without it",
            kind.name()
        ),
        format!(
            "say evolve or pause for it: {FIELD}: {{ {}, default: pause }}",
            may.join(", ")
        ),
    );
    Err(at(&field(kind), problem))
}

fn is_known(name: &str) -> bool {
    name == DEFAULT || ChangeKind::ALL.iter().any(|kind| kind.name() == name)
}

fn policy(value: &Value, field: &str) -> Result<ChangePolicy, Problem> {
    match value.as_str() {
        Some("evolve") => Ok(ChangePolicy::Evolve),
        Some("pause") => Ok(ChangePolicy::Pause),
        Some("ignore") => Ok(ChangePolicy::Ignore),
        _ => {
            let problem = Problem::new(
                "DR-2040",
                format!("{value} is no policy for schema changes"),
                "use evolve, pause or ignore",
            );
            Err(at(field, problem))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_is_for_all_kinds_or_for_those_that_are_named() {
        use ChangePolicy::{Evolve, Pause};
        assert_eq!(parse(None).unwrap(), ChangePolicies::all(Evolve));
        assert_eq!(
            parse(Some(&json!("pause"))).unwrap(),
            ChangePolicies::all(Pause)
        );
        let some = json!({ "default": "pause", "add_column": "evolve" });
        let expected = ChangePolicies::all(Pause).with(ChangeKind::AddColumn, Evolve);
        assert_eq!(parse(Some(&some)).unwrap(), expected);
        let some = json!({ "rename_table": "pause" });
        let expected = ChangePolicies::default().with(ChangeKind::RenameTable, Pause);
        assert_eq!(parse(Some(&some)).unwrap(), expected);
    }

    #[test]
    fn what_rows_are_not_right_without_is_not_ignored() {
        let columns =
            json!({ "add_column": "ignore", "drop_column": "ignore", "rename_column": "ignore" });
        let policies = parse(Some(&columns)).unwrap();
        assert_eq!(policies.of(ChangeKind::DropColumn), ChangePolicy::Ignore);
        assert_eq!(policies.of(ChangeKind::ChangeType), ChangePolicy::Evolve);
        for (value, field) in [
            (json!("ignore"), "schema_changes"),
            (
                json!({ "change_key": "ignore" }),
                "schema_changes.change_key",
            ),
            (
                json!({ "default": "ignore", "change_type": "pause" }),
                "schema_changes.default",
            ),
        ] {
            let problem = parse(Some(&value)).unwrap_err();
            let found = (problem.code, problem.field.as_deref());
            assert_eq!(found, ("DR-2041", Some(field)), "{value}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        for (value, field) in [
            (json!("stop"), "schema_changes"),
            (json!(3), "schema_changes"),
            (json!({ "default": "stop" }), "schema_changes.default"),
            (json!({ "drop_column": [] }), "schema_changes.drop_column"),
            (json!({ "drop": "pause" }), "schema_changes.drop"),
        ] {
            let problem = parse(Some(&value)).unwrap_err();
            let found = (problem.code, problem.field.as_deref());
            assert_eq!(found, ("DR-2040", Some(field)), "{value}");
        }
    }
}

//! The documents that the engine keeps in the replicated state: specifications, what is paused, which changes are let
//! through, and the ids of streams and pipelines. Each is JSON under its format: `{"format": 1, "of": ...}`.

use bytes::Bytes;
use downriver_cluster::Node;
use serde_json::{Value, json};

use super::approved::approved_key;
use super::paused::paused_key;
use super::replicated::{pipeline_id_key, stream_id_key};

const FORMAT: u64 = 1;

pub(super) fn encode(of: &Value) -> Bytes {
    Bytes::from(json!({ "format": FORMAT, "of": of }).to_string())
}

/// # Errors
/// What is wrong with the bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<Value, String> {
    let mut stored: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("is damaged: {error}"))?;
    match stored["format"].as_u64() {
        Some(FORMAT) => Ok(stored["of"].take()),
        Some(format) => Err(format!("has format {format}, this build reads {FORMAT}")),
        None => Err(format!("has no format, this build reads {FORMAT}")),
    }
}

/// Refuses a state of which this build cannot read something: what is not read would count as not there, and what
/// a pipeline needs would be forgotten.
///
/// # Errors
/// The first thing that cannot be read.
pub(in crate::server) fn check(node: &Node) -> anyhow::Result<()> {
    let check = |what: String, bytes: &[u8]| match decode(bytes) {
        Ok(_) => Ok(()),
        Err(reason) => Err(anyhow::anyhow!("the stored {what} {reason}")),
    };
    let record = |key: String| match node.record(&key) {
        Some(bytes) => check(format!("record {key:?}"), &bytes),
        None => Ok(()),
    };
    for resource in node.resources() {
        let (kind, name) = (&resource.kind, &resource.name);
        check(format!("{kind} {name:?}"), &resource.spec_json)?;
        match kind.as_str() {
            "Source" => record(stream_id_key(name))?,
            "Sink" => {}
            "Pipeline" => {
                record(paused_key(name))?;
                record(approved_key(name))?;
                record(pipeline_id_key(name))?;
            }
            _ => anyhow::bail!(
                "the stored {kind} {name:?} is of a kind that this build does not know"
            ),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use downriver_cluster::{NodeConfig, ResourcePut};
    use downriver_log::store::LocalStore;
    use downriver_service::spec::Spec;
    use downriver_testkit::fixture;

    use super::*;

    /// A specification of each kind with everything that it may have.
    fn specs() -> [(&'static str, Value); 4] {
        let source = json!({ "postgres": {
            "url": "postgres://cdc@db/shop", "password": { "env": "P" }, "tables": ["public.*", "!public.a"],
            "tls": { "ca": { "file": "/ca.pem" } }, "slot": "s", "publication": "p",
            "snapshot": { "mode": "initial", "chunk_rows": 10, "max_workers": 2, "rows_per_second": 0 },
        }});
        let sink = json!({ "iceberg": {
            "catalog": { "rest": { "uri": "https://c", "warehouse": "w", "credential": { "env": "C" } } },
            "warehouse": "s3://lake/shop",
            "s3": { "endpoint": "http://s", "region": "r", "path_style": true,
                    "access_key": { "env": "K" }, "secret_key": { "env": "S" } },
        }});
        let pipeline =
            json!({ "source": "shop", "sink": "lake", "mode": "mirror", "freshness": "10s" });
        let mysql = json!({ "mysql": {
            "url": "mysql://cdc@db", "password": { "env": "P" }, "tables": ["shop.*", "!shop.a"],
            "tls": { "ca": { "file": "/ca.pem" } }, "server_id": 4711, "snapshot": "none",
            "start": { "gtid": "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5" }, "on_hole": "resnapshot",
            "binlog_retention": { "warn": "6h" },
        }});
        [
            ("source", source),
            ("source-mysql", mysql),
            ("sink", sink),
            ("pipeline", pipeline),
        ]
    }

    #[test]
    fn specifications_of_format_1_are_read_as_they_were_stored() {
        for (form, spec) in specs() {
            let name = format!("{form}-v1.json");
            let kind = match form {
                "sink" => "Sink",
                "pipeline" => "Pipeline",
                _ => "Source",
            };
            let stored = fixture::bytes(&name, || encode(&spec).to_vec()).unwrap();
            assert_eq!(decode(&stored), Ok(spec.clone()), "{name}");
            if let Err(problem) = Spec::parse(kind, &spec) {
                panic!("{name}: {problem:?}");
            }
        }
    }

    #[test]
    fn a_document_of_a_newer_format_is_refused() {
        let refused = |stored: Value| decode(stored.to_string().as_bytes()).unwrap_err();
        let newer = refused(json!({ "format": 2, "of": [] }));
        assert_eq!(newer, "has format 2, this build reads 1");
        assert_eq!(refused(json!(["*"])), "has no format, this build reads 1");
        assert!(decode(b"{").unwrap_err().starts_with("is damaged"));
    }

    #[tokio::test]
    async fn a_state_with_a_document_of_a_newer_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(&folder.path().join("objects")).unwrap());
        let config = NodeConfig::new(folder.path().join("node"), store);
        let node = Node::start(config).await.unwrap();
        let newer = Bytes::from_static(br#"{"format":2,"of":[]}"#);
        let put = |kind: &str, spec_json| ResourcePut {
            kind: kind.into(),
            name: "p".into(),
            spec_json,
            expected_revision: None,
        };
        let (_, spec) = specs().into_iter().next_back().unwrap();
        let known = node.apply_resources(vec![put("Pipeline", encode(&spec))]);
        known.await.unwrap();
        check(&node).unwrap();

        node.put_record(&paused_key("p"), Some(newer.clone()))
            .await
            .unwrap();
        assert_eq!(
            check(&node).unwrap_err().to_string(),
            r#"the stored record "paused/p" has format 2, this build reads 1"#
        );
        node.put_record(&paused_key("p"), None).await.unwrap();
        check(&node).unwrap();

        node.apply_resources(vec![put("Group", encode(&spec))])
            .await
            .unwrap();
        let reason = check(&node).unwrap_err().to_string();
        assert!(
            reason.ends_with("is of a kind that this build does not know"),
            "{reason}"
        );
        node.delete_resource("Group", "p", None).await.unwrap();
        node.apply_resources(vec![put("Pipeline", newer)])
            .await
            .unwrap();
        assert_eq!(
            check(&node).unwrap_err().to_string(),
            r#"the stored Pipeline "p" has format 2, this build reads 1"#
        );
        node.shutdown().await;
    }
}

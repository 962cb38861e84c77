//! Groups of consumers: `SOURCE/GROUP`.

use downriver_api::admin::v1 as pb;
use serde_json::{Value, json};

use super::client::{Client, Failure};
use super::render;

fn path(group: &pb::Group) -> String {
    format!("{}/{}", group.source, group.name)
}

/// All groups, those of a source, or the one that is named.
pub(super) async fn groups(
    client: &mut Client,
    name: Option<&str>,
) -> Result<Vec<pb::Group>, Failure> {
    let answer = client.admin.groups(pb::GroupsRequest {}).await?;
    let mut groups = answer.into_inner().groups;
    if let Some(name) = name {
        groups.retain(|group| group.source == name || path(group) == name);
        if groups.is_empty() {
            return Err(Failure::Other(format!(
                "there is no group {name:?}: see downriver get groups"
            )));
        }
    }
    Ok(groups)
}

pub(super) async fn delete(mut client: Client, name: &str) -> Result<(), Failure> {
    let (source, group) = name
        .split_once('/')
        .ok_or_else(|| Failure::Usage(format!("{name:?} is not a group: write SOURCE/GROUP")))?;
    let request = pb::DeleteGroupRequest {
        source: source.to_owned(),
        name: group.to_owned(),
    };
    client.admin.delete_group(request).await?;
    println!("group {name} is forgotten");
    Ok(())
}

pub(super) fn to_json(group: &pb::Group) -> Value {
    json!({
        "source": group.source,
        "group": group.name,
        "member": group.member,
        "epoch": group.epoch,
        "offset": group.offset,
        "incarnation": group.incarnation,
        "behind": group.behind,
    })
}

pub(super) fn overview(groups: &[pb::Group]) -> String {
    let rows = groups.iter().map(|group| {
        vec![
            path(group),
            group.member.clone(),
            group.epoch.to_string(),
            group
                .offset
                .map_or_else(String::new, |offset| offset.to_string()),
            group.behind.to_string(),
        ]
    });
    let header = ["GROUP", "MEMBER", "EPOCH", "OFFSET", "BEHIND"];
    render::table(&header, &rows.collect::<Vec<_>>())
}

//! Who runs what: pure planning. Tasks that belong together stay together, and nothing moves without a reason.

use std::collections::{BTreeMap, BTreeSet};

use downriver_api::cluster::v1 as pb;

/// Something that one node at a time runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub key: String,
    /// The task on whose node it runs.
    pub near: Option<String>,
}

/// Nodes that tasks may be given to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes {
    /// They answer, and are not about to stop.
    pub(crate) alive: BTreeSet<u64>,
    /// Those of them that have been alive for long enough to be trusted with what runs well elsewhere.
    pub(crate) settled: BTreeSet<u64>,
}

/// What has to move: tasks of nodes that are gone, tasks that are new or gone, and few others, so that no node has two
/// more than another.
pub(crate) fn plan(
    tasks: &[Task],
    nodes: &Nodes,
    assigned: &BTreeMap<String, u64>,
) -> Vec<pb::Move> {
    let groups = grouped(tasks);
    let owner_of = |key: &String| assigned.get(key).copied().unwrap_or_default();
    let mut owners: BTreeMap<&String, u64> = BTreeMap::new();
    for root in groups.keys() {
        let owner = owner_of(root);
        if nodes.alive.contains(&owner) {
            owners.insert(root, owner);
        }
    }
    let trusted = match nodes.settled.is_empty() {
        true => &nodes.alive,
        false => &nodes.settled,
    };
    for root in groups.keys() {
        if !owners.contains_key(root)
            && let Some(node) = least_loaded(trusted, &owners)
        {
            owners.insert(root, node);
        }
    }
    balance(&nodes.settled, &mut owners);

    let mut moves = Vec::new();
    let mut step = |task: &String, to: u64| {
        let from = owner_of(task);
        if from != to {
            let task = task.clone();
            moves.push(pb::Move { task, from, to });
        }
    };
    for (root, members) in &groups {
        let Some(owner) = owners.get(root) else {
            continue;
        };
        for task in members {
            step(task, *owner);
        }
    }
    let wanted: BTreeSet<&String> = tasks.iter().map(|task| &task.key).collect();
    for task in assigned.keys().filter(|task| !wanted.contains(task)) {
        step(task, 0);
    }
    moves
}

/// Tasks by the one on whose node they all run.
fn grouped(tasks: &[Task]) -> BTreeMap<String, Vec<String>> {
    let known: BTreeSet<&String> = tasks.iter().map(|task| &task.key).collect();
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for task in tasks {
        let near = task.near.as_ref().filter(|near| known.contains(near));
        let root = near.unwrap_or(&task.key);
        groups
            .entry(root.clone())
            .or_default()
            .push(task.key.clone());
    }
    groups
}

fn load(node: u64, owners: &BTreeMap<&String, u64>) -> usize {
    owners.values().filter(|owner| **owner == node).count()
}

fn least_loaded(nodes: &BTreeSet<u64>, owners: &BTreeMap<&String, u64>) -> Option<u64> {
    nodes.iter().copied().min_by_key(|node| load(*node, owners))
}

fn balance(settled: &BTreeSet<u64>, owners: &mut BTreeMap<&String, u64>) {
    loop {
        let Some(least) = least_loaded(settled, owners) else {
            return;
        };
        let loads: BTreeSet<u64> = owners.values().copied().collect();
        let most = loads.into_iter().max_by_key(|node| load(*node, owners));
        let Some(most) = most.filter(|most| load(*most, owners) > load(least, owners) + 1) else {
            return;
        };
        let moved = owners.iter_mut().find(|(_, owner)| **owner == most);
        *moved.expect("it has some").1 = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(count: usize) -> Vec<Task> {
        let pair = |n: usize| {
            let key = format!("source/{n}");
            let pipeline = Task {
                key: format!("pipeline/{n}"),
                near: Some(key.clone()),
            };
            [Task { key, near: None }, pipeline]
        };
        (0..count).flat_map(pair).collect()
    }

    fn nodes(alive: &[u64]) -> Nodes {
        let alive: BTreeSet<u64> = alive.iter().copied().collect();
        Nodes {
            settled: alive.clone(),
            alive,
        }
    }

    fn carry_out(moves: Vec<pb::Move>, assigned: &mut BTreeMap<String, u64>) -> usize {
        let count = moves.len();
        for step in moves {
            assert_eq!(
                assigned.get(&step.task).copied().unwrap_or_default(),
                step.from
            );
            match step.to {
                0 => assigned.remove(&step.task),
                to => assigned.insert(step.task, to),
            };
        }
        assert!(assigned.iter().all(|(task, owner)| {
            let source = task.replace("pipeline/", "source/");
            assigned[&source] == *owner
        }));
        count
    }

    fn loads(assigned: &BTreeMap<String, u64>, alive: &[u64]) -> Vec<usize> {
        let of = |node: &u64| assigned.values().filter(|owner| *owner == node).count();
        alive.iter().map(of).collect()
    }

    #[test]
    fn tasks_are_spread_and_a_plan_that_was_carried_out_is_followed_by_none() {
        let (tasks, mut assigned) = (tasks(7), BTreeMap::new());
        let nodes = nodes(&[1, 2, 3]);
        carry_out(plan(&tasks, &nodes, &assigned), &mut assigned);
        assert_eq!(loads(&assigned, &[1, 2, 3]), [6, 4, 4]);
        assert_eq!(plan(&tasks, &nodes, &assigned), []);
    }

    #[test]
    fn only_what_a_lost_node_ran_moves_and_little_comes_back_to_it() {
        let (tasks, mut assigned) = (tasks(6), BTreeMap::new());
        carry_out(plan(&tasks, &nodes(&[1, 2, 3]), &assigned), &mut assigned);
        assert_eq!(
            carry_out(plan(&tasks, &nodes(&[1, 3]), &assigned), &mut assigned),
            4
        );
        assert_eq!(loads(&assigned, &[1, 3]), [6, 6]);
        // It is back, and may go again: nothing moves to it yet.
        let mut back = nodes(&[1, 2, 3]);
        back.settled.remove(&2);
        assert_eq!(plan(&tasks, &back, &assigned), []);
        assert_eq!(
            carry_out(plan(&tasks, &nodes(&[1, 2, 3]), &assigned), &mut assigned),
            4
        );
        assert_eq!(loads(&assigned, &[1, 2, 3]), [4, 4, 4]);
    }

    #[test]
    fn what_is_gone_is_forgotten_and_without_a_node_nothing_moves() {
        let mut assigned = BTreeMap::new();
        assert_eq!(plan(&tasks(2), &nodes(&[]), &assigned), []);
        carry_out(plan(&tasks(2), &nodes(&[1]), &assigned), &mut assigned);
        assert_eq!(plan(&tasks(2), &nodes(&[]), &assigned), []);
        carry_out(plan(&tasks(1), &nodes(&[1]), &assigned), &mut assigned);
        assert_eq!(assigned.len(), 2);
    }
}

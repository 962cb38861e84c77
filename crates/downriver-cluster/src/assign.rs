//! Who runs what: pure planning. Tasks that belong together stay together, and nothing moves without a reason.

use std::collections::{BTreeMap, BTreeSet};

use downriver_api::cluster::v1 as pb;

/// Something that one node at a time runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Task {
    pub key: String,
    /// The task on whose node it runs.
    pub near: Option<String>,
    /// Those that name the same run on different nodes, as far as nodes have equally much to do.
    pub apart: Option<String>,
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
    let owner_of = |key: &str| assigned.get(key).copied().unwrap_or_default();
    let mut placed = Placed::default();
    for (root, group) in &groups {
        let owner = owner_of(root);
        if nodes.alive.contains(&owner) {
            placed.put(root, group, owner);
        }
    }
    let trusted = match nodes.settled.is_empty() {
        true => &nodes.alive,
        false => &nodes.settled,
    };
    for (root, group) in &groups {
        if !placed.owners.contains_key(root)
            && let Some(node) = placed.best_for(group, trusted)
        {
            placed.put(root, group, node);
        }
    }
    placed.balance(&groups, &nodes.settled);

    let mut moves = Vec::new();
    let mut step = |task: &str, to: u64| {
        let from = owner_of(task);
        if from != to {
            let task = task.to_owned();
            moves.push(pb::Move { task, from, to });
        }
    };
    for (root, group) in &groups {
        let Some(owner) = placed.owners.get(root) else {
            continue;
        };
        for task in &group.members {
            step(task, *owner);
        }
    }
    let wanted: BTreeSet<&String> = tasks.iter().map(|task| &task.key).collect();
    for task in assigned.keys().filter(|task| !wanted.contains(task)) {
        step(task, 0);
    }
    moves
}

/// Tasks that run on one node.
#[derive(Default)]
struct Group<'a> {
    members: Vec<&'a str>,
    /// What they name that others are to be apart from.
    apart: BTreeSet<&'a str>,
}

/// Groups by the task on whose node they run.
fn grouped(tasks: &[Task]) -> BTreeMap<&str, Group<'_>> {
    let known: BTreeSet<&String> = tasks.iter().map(|task| &task.key).collect();
    let mut groups: BTreeMap<&str, Group<'_>> = BTreeMap::new();
    for task in tasks {
        let near = task.near.as_ref().filter(|near| known.contains(near));
        let group = groups.entry(near.unwrap_or(&task.key)).or_default();
        group.members.push(&task.key);
        group.apart.extend(task.apart.as_deref());
    }
    groups
}

/// Groups, by their first task, and the nodes that have them.
#[derive(Default)]
struct Placed<'a> {
    owners: BTreeMap<&'a str, u64>,
    loads: BTreeMap<u64, usize>,
    /// How many groups of a node name a thing that others are to be apart from.
    near: BTreeMap<(u64, &'a str), usize>,
}

impl<'a> Placed<'a> {
    fn put(&mut self, root: &'a str, group: &Group<'a>, node: u64) {
        self.owners.insert(root, node);
        *self.loads.entry(node).or_default() += 1;
        for word in &group.apart {
            *self.near.entry((node, word)).or_default() += 1;
        }
    }

    fn take(&mut self, root: &'a str, group: &Group<'a>) {
        let Some(node) = self.owners.remove(root) else {
            return;
        };
        *self.loads.entry(node).or_default() -= 1;
        for word in &group.apart {
            *self.near.entry((node, word)).or_default() -= 1;
        }
    }

    fn load(&self, node: u64) -> usize {
        self.loads.get(&node).copied().unwrap_or_default()
    }

    /// How many groups of the node this one is to be apart from.
    fn crowd(&self, group: &Group<'a>, node: u64) -> usize {
        let near = |word: &&'a str| self.near.get(&(node, *word)).copied();
        group.apart.iter().filter_map(near).sum()
    }

    fn best_for(&self, group: &Group<'a>, nodes: &BTreeSet<u64>) -> Option<u64> {
        let cost = |node: &u64| (self.load(*node), self.crowd(group, *node));
        nodes.iter().copied().min_by_key(cost)
    }

    fn balance(&mut self, groups: &BTreeMap<&'a str, Group<'a>>, settled: &BTreeSet<u64>) {
        let alone = Group::default();
        while let Some(least) = self.best_for(&alone, settled) {
            let fullest = self
                .loads
                .keys()
                .copied()
                .max_by_key(|node| self.load(*node));
            let Some(most) = fullest.filter(|most| self.load(*most) > self.load(least) + 1) else {
                return;
            };
            // One that is crowded where it is, and would not be there.
            let gain = |group: &Group<'a>| {
                let (here, there) = (self.crowd(group, most), self.crowd(group, least));
                (there, std::cmp::Reverse(here))
            };
            let of_most = groups
                .iter()
                .filter(|(root, _)| self.owners.get(*root) == Some(&most));
            let moved = of_most.min_by_key(|(_, group)| gain(group));
            let (root, group) = moved.expect("it has some");
            self.take(root, group);
            self.put(root, group, least);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    fn tasks(count: usize) -> Vec<Task> {
        let pair = |n: usize| {
            let key = format!("source/{n}");
            let pipeline = Task {
                key: format!("pipeline/{n}"),
                near: Some(key.clone()),
                apart: None,
            };
            let source = Task {
                key,
                ..Task::default()
            };
            [source, pipeline]
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

    /// Pipelines whose tables are shared out, each of a source of its own.
    fn shared_out(pipelines: usize, shares: usize) -> Vec<Task> {
        let mut tasks = tasks(pipelines);
        for pipeline in 0..pipelines {
            let word = format!("pipeline/{pipeline}");
            for task in tasks.iter_mut().filter(|task| task.key == word) {
                task.apart = Some(word.clone());
            }
            tasks.extend((1..shares).map(|share| Task {
                key: format!("{word}/{share}"),
                near: None,
                apart: Some(word.clone()),
            }));
        }
        tasks
    }

    fn ensure_apart(assigned: &BTreeMap<String, u64>, pipelines: usize, nodes: usize) {
        for pipeline in 0..pipelines {
            let prefix = format!("pipeline/{pipeline}");
            let of = assigned
                .iter()
                .filter(|(task, _)| task.starts_with(&prefix));
            let on: BTreeSet<u64> = of.map(|(_, node)| *node).collect();
            assert_eq!(on.len(), nodes, "{assigned:?}");
        }
    }

    fn carry_out_any(moves: Vec<pb::Move>, assigned: &mut BTreeMap<String, u64>) -> usize {
        let count = moves.len();
        assigned.extend(moves.into_iter().map(|step| (step.task, step.to)));
        count
    }

    #[test]
    fn shares_of_a_pipeline_run_apart_and_only_those_of_a_lost_node_move() {
        let (tasks, mut assigned) = (shared_out(4, 3), BTreeMap::new());
        let all = nodes(&[1, 2, 3]);
        carry_out_any(plan(&tasks, &all, &assigned), &mut assigned);
        ensure_apart(&assigned, 4, 3);
        assert_eq!(plan(&tasks, &all, &assigned), []);
        let lost = assigned.values().filter(|node| **node == 2).count();
        let moved = carry_out_any(plan(&tasks, &nodes(&[1, 3]), &assigned), &mut assigned);
        assert_eq!(moved, lost);
        ensure_apart(&assigned, 4, 2);
        // It is back: as many go to it as keep the nodes even, of each pipeline one.
        carry_out_any(plan(&tasks, &all, &assigned), &mut assigned);
        ensure_apart(&assigned, 4, 3);
        assert_eq!(plan(&tasks, &all, &assigned), []);
    }

    #[test]
    fn whatever_comes_and_goes_everything_runs_on_living_nodes_evenly_and_a_plan_is_final() {
        for seed in 0..300 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut assigned = BTreeMap::new();
            for _ in 0..12 {
                let tasks = shared_out(random.random_range(0..6), random.random_range(1..5));
                let alive: Vec<u64> = (1..=5).filter(|_| random.random_bool(0.6)).collect();
                let mut there = nodes(&alive);
                there.settled.retain(|_| random.random_bool(0.8));
                for step in plan(&tasks, &there, &assigned) {
                    match step.to {
                        0 => assigned.remove(&step.task),
                        to => assigned.insert(step.task, to),
                    };
                }
                assert_eq!(plan(&tasks, &there, &assigned), [], "seed {seed}");
                if alive.is_empty() {
                    continue;
                }
                let keys: BTreeSet<&String> = tasks.iter().map(|task| &task.key).collect();
                assert!(assigned.keys().eq(keys), "seed {seed}");
                assert!(assigned.values().all(|node| alive.contains(node)));
                for task in &tasks {
                    let near = task.near.as_ref().map(|near| assigned[near]);
                    assert!(near.is_none_or(|near| near == assigned[&task.key]));
                }
                // Groups, by their first tasks.
                let roots = tasks.iter().filter(|task| task.near.is_none());
                let roots: Vec<u64> = roots.map(|task| assigned[&task.key]).collect();
                let load = |node: &u64| roots.iter().filter(|owner| *owner == node).count();
                let settled = there.settled.iter().map(load);
                let (least, most) = (settled.clone().min(), settled.max());
                let is_even = least
                    .zip(most)
                    .is_none_or(|(least, most)| most <= least + 1);
                assert!(is_even, "seed {seed}: {assigned:?}");
            }
        }
    }
}

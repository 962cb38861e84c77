//! Shares of pipelines' tables: which of them run here, and where the others do.

use std::collections::BTreeMap;

use downriver_cluster::pipeline_task;
use downriver_event::TableId;
use downriver_event::problem::Problem;
use downriver_log::Log as _;
use downriver_pipeline::delivery::{Share, Sharing};
use downriver_service::Where;
use downriver_service::spec::Pipeline;

use super::{NodeEngine, Turn, unavailable};

impl NodeEngine {
    /// The shares of a pipeline that this node is to run, and since when.
    pub(super) fn shares_here(&self, name: &str, pipeline: &Pipeline) -> BTreeMap<u32, Turn> {
        let shares = 0..pipeline.shares();
        let turns =
            shares.filter_map(|share| Some((share, self.turn(&pipeline_task(name, share))?)));
        turns.collect()
    }

    /// Returns when this node knows what was stored before the call.
    pub(super) async fn come_up(&self) -> Result<(), Problem> {
        let known = self.node.read_index().await;
        known.map_err(|error| unavailable(&error))
    }

    /// Where the shares but the first run, by node.
    pub(super) fn sharers_of(&self, name: &str) -> Vec<(Where, Vec<u32>)> {
        let shares = self.pipeline_spec(name).map_or(1, |spec| spec.shares());
        let mut by_node: BTreeMap<Option<u64>, Vec<u32>> = BTreeMap::new();
        for share in 1..shares {
            let owner = self.node.assigned(&pipeline_task(name, share));
            let owner = owner.map(|owner| owner.node);
            by_node.entry(owner).or_default().push(share);
        }
        let place = |node| match node {
            None => Where::Nowhere(Problem::new(
                "DR-1109",
                format!("no node was given all tables of pipeline {name:?} yet"),
                "ask again",
            )),
            Some(node) if node == self.node.id() => Where::Here,
            Some(node) => self.place_of(node),
        };
        let by_node = by_node.into_iter();
        by_node
            .map(|(node, shares)| (place(node), shares))
            .collect()
    }

    /// The share of each table of a pipeline that its source's log knows.
    pub(super) fn dealt(&self, pipeline: &Pipeline) -> BTreeMap<TableId, u32> {
        let sharing = Sharing {
            tables: &pipeline.tables,
            one_namespace: pipeline.namespace.is_some(),
            shares: pipeline.shares(),
        };
        let state = self.node.state(&pipeline.source);
        state
            .map(|state| sharing.deal(&state.schemas))
            .unwrap_or_default()
    }
}

pub(super) fn share_of(pipeline: &Pipeline, index: u32) -> Share {
    Share {
        index,
        of: pipeline.shares(),
    }
}

//! The division of the rate by demand: pure, and without effect on the guarantee.

use std::{collections::BTreeMap, sync::Arc};

/// The parts to lend to each region: each keeps its floor, and the rest follows demand. The same in every region that sees
/// the same demands; where they differ, only the balance suffers.
pub(super) fn wanted(
    me: &str,
    regions: &BTreeMap<Arc<str>, (u32, u32)>,
    demands: &BTreeMap<Arc<str>, u64>,
) -> BTreeMap<Arc<str>, u32> {
    let targets = targets(regions, demands);
    let over = |region: &str| {
        let base = regions.get(region).map_or(0, |(base, _)| *base);
        targets
            .get(region)
            .copied()
            .unwrap_or(base)
            .saturating_sub(base)
    };
    let all: u64 = regions.keys().map(|region| u64::from(over(region))).sum();
    let base = regions.get(me).map_or(0, |(base, _)| *base);
    let spare = u64::from(base.saturating_sub(targets.get(me).copied().unwrap_or(base)));
    let share = |region: &Arc<str>| {
        let parts = (spare * u64::from(over(region)))
            .checked_div(all)
            .unwrap_or(0);
        (Arc::clone(region), u32::try_from(parts).unwrap_or(0))
    };
    regions
        .keys()
        .filter(|region| &***region != me)
        .map(share)
        .collect()
}

/// The shares in proportion to the demands; the base for a region whose demand is not known.
fn targets(
    regions: &BTreeMap<Arc<str>, (u32, u32)>,
    demands: &BTreeMap<Arc<str>, u64>,
) -> BTreeMap<Arc<str>, u32> {
    let known = || {
        regions
            .iter()
            .filter(|(region, _)| demands.contains_key(*region))
    };
    let all: u128 = demands.values().map(|demand| u128::from(*demand)).sum();
    let spare: u32 = known().map(|(_, (base, floor))| base - floor).sum();
    known()
        .map(|(region, (base, floor))| {
            let demand = u128::from(demands[region]);
            let more = (u128::from(spare) * demand).checked_div(all);
            let more = more.map_or(base - floor, |more| u32::try_from(more).unwrap_or(0));
            (Arc::clone(region), floor + more)
        })
        .collect()
}

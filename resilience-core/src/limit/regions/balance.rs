//! The division of the rate by demand: pure, and without effect on the guarantee.

use std::{collections::BTreeMap, sync::Arc};

use super::ledger::WHOLE;

/// The parts to lend to each region. The same in every region that sees
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

/// The shares by the demands; the base for a region whose demand is not known. Each keeps what it needs of its base, at
/// least its floor; the rest is divided in proportion to the demands.
fn targets(
    regions: &BTreeMap<Arc<str>, (u32, u32)>,
    demands: &BTreeMap<Arc<str>, u64>,
) -> BTreeMap<Arc<str>, u32> {
    let known = || {
        regions
            .iter()
            .filter_map(|(region, shares)| Some((region, *shares, *demands.get(region)?)))
    };
    let all: u128 = known().map(|(_, _, demand)| u128::from(demand)).sum();
    let spare: u32 = known()
        .map(|(_, shares, demand)| shares.0 - kept(shares, demand))
        .sum();
    known()
        .map(|(region, shares, demand)| {
            let more = (u128::from(spare) * u128::from(demand)).checked_div(all);
            let target = match more {
                Some(more) => kept(shares, demand) + u32::try_from(more).unwrap_or(0),
                None => shares.0,
            };
            (Arc::clone(region), target)
        })
        .collect()
}

/// The part of its base that a region with this demand, in millionths of the whole, does not lend: a quarter more than it
/// needs.
fn kept((base, floor): (u32, u32), demand: u64) -> u32 {
    let needed = u128::from(demand) * u128::from(WHOLE) * 5 / 4 / 1_000_000;
    u32::try_from(needed).unwrap_or(base).clamp(floor, base)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const BASE: u32 = WHOLE / 2;
    const FLOOR: u32 = 13;

    /// The target of `eu`, with these demands of `eu` and `us` in percent of the whole.
    fn target(eu: u64, us: u64) -> u32 {
        let regions = ["eu", "us"].map(|name| (Arc::from(name), (BASE, FLOOR)));
        let demands = [("eu", eu), ("us", us)];
        let demands = demands.map(|(name, percent)| (Arc::from(name), percent * 10_000));
        let targets = targets(&regions.into(), &demands.into());
        assert!(targets["eu"] + targets["us"] <= WHOLE, "{targets:?}");
        targets["eu"]
    }

    #[test]
    fn a_region_keeps_what_it_needs_however_much_others_ask_for() {
        for others in [100, 1_000, 1_000_000] {
            assert_eq!(target(100, others), BASE);
            assert_eq!(target(50, others), BASE);
            let quarter = target(20, others);
            assert!((64..=80).contains(&quarter), "{quarter}");
            assert_eq!(target(0, others), FLOOR);
        }
    }

    #[test]
    fn what_is_not_needed_follows_the_demand() {
        assert_eq!(target(100, 0), WHOLE - FLOOR);
        assert_eq!(target(1, 0), WHOLE - FLOOR, "it may want more soon");
        assert_eq!(target(0, 0), BASE);
        assert!((110..=146).contains(&target(2, 2)), "{}", target(2, 2));
        assert!(target(3, 1) > 150, "{}", target(3, 1));
    }
}

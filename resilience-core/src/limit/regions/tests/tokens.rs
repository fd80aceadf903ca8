//! What is admitted, to the token, while the share moves: the machine's buckets, one in each region.

use proptest::prelude::*;

use super::*;
use crate::limit::{
    regions::share::{Reading, ShareTracker},
    token_bucket::{Bucket, Claim, decide_one},
};
use crate::test_counts::cases;

/// A region with two processes, each of which hears of the region's share when it does.
struct Region {
    bucket: Option<Bucket>,
    processes: [ShareTracker; 2],
    /// The share that it has.
    share: u32,
}

const FLOOR: u32 = 8;
/// Two of them are the whole.
const BASE: u32 = WHOLE / 2;

impl Region {
    fn new() -> Self {
        let process = || ShareTracker::new(FLOOR);
        Self {
            bucket: None,
            processes: [process(), process()],
            share: BASE,
        }
    }

    fn hear(&self, process: usize, now: u64) {
        let reading = Reading {
            own: self.share,
            borrowed: Vec::new(),
            until: Some(Moment::from_nanos(u64::MAX)),
        };
        self.processes[process].read(reading, Moment::from_nanos(now));
    }

    fn ask(&mut self, quota: &Quota, process: usize, cost: u64, now: u64) -> bool {
        let known = &self.processes[process];
        let used = known.for_bucket(&"bucket", Moment::from_nanos(now));
        let portion = quota.portion(used.parts.into(), WHOLE.into(), quota.capacity() / 2);
        let (outcome, after) = decide_one(
            Claim {
                bucket: self.bucket,
                quota: &portion.unwrap(),
                cost: cost.cast_signed(),
            },
            now,
        );
        if after.changed {
            self.bucket = after.bucket;
        }
        if outcome.is_admitted() {
            known.written(std::iter::once(used));
        }
        outcome.is_admitted()
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Takes all that there is.
    Drain {
        region: usize,
        process: usize,
    },
    Ask {
        region: usize,
        process: usize,
        cost: u64,
    },
    /// Shares move; the smaller one is heard of before the larger one is.
    Move {
        to: u32,
    },
    Hear {
        region: usize,
        process: usize,
    },
}

fn op() -> impl Strategy<Value = (Op, u64)> {
    let who = || (0usize..2, 0usize..2);
    let op = prop_oneof![
        6 => who().prop_map(|(region, process)| Op::Drain { region, process }),
        2 => (who(), 1u64..30).prop_map(|((region, process), cost)| Op::Ask { region, process, cost }),
        2 => prop_oneof![Just(FLOOR), Just(WHOLE - FLOOR), FLOOR..=WHOLE - FLOOR].prop_map(|to| Op::Move { to }),
        4 => who().prop_map(|(region, process)| Op::Hear { region, process }),
    ];
    (
        op,
        prop_oneof![Just(0u64), 1u64..1_000_000, 1u64..20_000_000],
    )
}

/// A share that went down and up again between two decisions: the time is paid at the least that it was.
#[test]
fn a_share_that_was_less_for_a_while_is_paid_as_less() {
    let quota = Quota::per(1, Duration::from_secs(1)).unwrap();
    let (quota, mut region, second) = (quota.burst(80).unwrap(), Region::new(), 1_000_000);
    region.hear(0, 0);
    assert!(region.ask(&quota, 0, 40, 0), "it is full");
    region.share = FLOOR;
    region.hear(0, second);
    region.share = WHOLE - FLOOR;
    region.hear(0, 2 * second);
    // Three seconds at 8 of 256 parts are no token.
    assert!(!region.ask(&quota, 0, 1, 3 * second));
    assert!(region.ask(&quota, 0, 1, 32 * second), "but 32 are");
}

/// The same where what was borrowed came to its end, and no call came until more was lent.
#[test]
fn a_loan_that_ended_unnoticed_is_paid_as_less() {
    let known = ShareTracker::new(FLOOR);
    let at = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
    let lent = |parts, until| Reading {
        own: FLOOR,
        borrowed: vec![(parts, at(until))],
        until: Some(at(100)),
    };
    known.read(lent(64, 10), at(0));
    let used = known.for_bucket(&"bucket", at(0));
    known.written(std::iter::once(used));
    known.read(lent(128, 90), at(20));
    assert_eq!(known.share(at(20)), FLOOR + 128);
    assert_eq!(known.for_bucket(&"bucket", at(20)).parts, FLOOR);
}

proptest! {
    #![proptest_config(cases(2_000))]

    /// In every stretch of time, all regions together: never more than the burst and the time times the rate.
    #[test]
    fn no_stretch_of_time_admits_more_than_the_limit_allows(
        ops in proptest::collection::vec(op(), 1..60),
        permits in 1u64..4,
        burst in 80u64..200,
    ) {
        let burst = burst / 2 * 2;
        let quota = Quota::per(permits, Duration::from_secs(1)).unwrap().burst(burst).unwrap();
        let mut regions = [Region::new(), Region::new()];
        let mut now = 1_000_000_000_000;
        let mut admitted: Vec<(u64, u64)> = Vec::new();
        for (op, pause) in ops {
            now += pause;
            match op {
                Op::Drain { region, process } => {
                    while regions[region].ask(&quota, process, 1, now) {
                        admitted.push((now, 1));
                    }
                }
                Op::Ask { region, process, cost } => {
                    if regions[region].ask(&quota, process, cost, now) {
                        admitted.push((now, cost));
                    }
                }
                Op::Move { to } => {
                    regions[0].share = to;
                    regions[1].share = WHOLE - to;
                    // All of the one that shrinks have heard before any of the one that grows may.
                    for region in &regions {
                        let of = |process: &ShareTracker| process.share(Moment::from_nanos(now));
                        for process in 0..2 {
                            if of(&region.processes[process]) > region.share {
                                region.hear(process, now);
                            }
                        }
                    }
                }
                Op::Hear { region, process } => regions[region].hear(process, now),
            }
        }
        for (first, (from, _)) in admitted.iter().enumerate() {
            let mut sum = 0;
            for (at, cost) in &admitted[first..] {
                sum += u128::from(*cost);
                let most = u128::from(burst) * 1_000_000 + u128::from(at - from) * u128::from(permits);
                prop_assert!(sum * 1_000_000 <= most, "{} in {} us", sum, at - from);
            }
        }
    }
}

//! The record by itself, under whatever is done to it in whatever order.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Acquire { who: u8, cost: u64, waits: bool },
    Renew { who: u8 },
    Release { who: u8, known: bool },
    Lose,
}

fn op() -> impl Strategy<Value = (Op, u64)> {
    let op = prop_oneof![
        8 => (0u8..12, 1u64..4, any::<bool>())
            .prop_map(|(who, cost, waits)| Op::Acquire { who, cost, waits }),
        3 => (0u8..12).prop_map(|who| Op::Renew { who }),
        5 => (0u8..12, any::<bool>()).prop_map(|(who, known)| Op::Release { who, known }),
        1 => Just(Op::Lose),
    ];
    let pause = prop_oneof![4 => Just(1u64), 4 => 1u64..50_000, 1 => 50_000u64..400_000];
    (op, pause)
}

const LIMIT: u64 = 5;
const LEASE_MS: u64 = 100;

fn request(who: u8, round: usize, cost: u64, waits: bool) -> AcquireRequest {
    AcquireRequest {
        lease: format!("{who}-{round}").into(),
        cost,
        limit: LIMIT,
        lease_ms: LEASE_MS,
        ticket_ms: if waits { LEASE_MS / 2 } else { 0 },
        releases: Vec::new(),
    }
}

proptest! {
    /// What holders by their own clock may believe to hold is never more than the limit, but for leases that outlived
    /// the record itself; and fences only go up, whatever is lost.
    #[test]
    fn holders_never_hold_more_than_there_is_and_fences_only_go_up(
        ops in proptest::collection::vec(op(), 1..200),
    ) {
        let (mut record, mut now, mut newest) = (BulkheadRecord::default(), 1_000_000_000_000_000u64, 0);
        // By whom: id, cost, fence, end, and how often the record had been lost before.
        let mut held: HashMap<u8, (Arc<str>, u64, u64, u64, usize)> = HashMap::new();
        let mut losses = 0;
        for (round, (op, pause)) in ops.into_iter().enumerate() {
            now += pause;
            held.retain(|_, (.., until, _)| *until > now);
            match op {
                Op::Acquire { who, cost, waits } if !held.contains_key(&who) => {
                    let request = request(who, round, cost, waits);
                    if let Admission::Granted { fence } = record.acquire(&request, now).answer {
                        prop_assert!(fence > newest);
                        newest = fence;
                        held.insert(who, (request.lease, cost, fence, now + LEASE_MS * 1000, losses));
                    }
                }
                Op::Acquire { .. } => {}
                Op::Renew { who } => {
                    let Some((lease, cost, fence, until, _)) = held.get_mut(&who) else { continue };
                    let holding = Holding { lease: Arc::clone(lease), cost: *cost, fence: *fence };
                    let beat = Heartbeat {
                        instance: "i".into(),
                        live_ms: 1,
                        lease_ms: LEASE_MS,
                        holdings: vec![holding],
                    };
                    let kept = record.renew(&beat, now).answer;
                    prop_assert_eq!(kept, vec![true], "held by its holder's clock");
                    *until = now + LEASE_MS * 1000;
                }
                Op::Release { who, known } => {
                    let Some((lease, _, fence, ..)) = held.remove(&who) else { continue };
                    let releases = [Release { lease, fence: known.then_some(fence) }];
                    record.release(&releases, now);
                    prop_assert_eq!(record.release(&releases, now).answer, vec![false]);
                }
                Op::Lose => {
                    record = BulkheadRecord::default();
                    losses += 1;
                }
            }
            let young = held.values().filter(|(.., of)| *of == losses);
            let believed: u64 = young.map(|(_, cost, ..)| cost).sum();
            prop_assert!(believed <= LIMIT, "{} of {}", believed, LIMIT);
            let seen = record.view(now);
            prop_assert!(believed <= seen.in_flight);
        }
    }

    /// The first who waits is never starved by those behind it, and is called up when there is room.
    #[test]
    fn the_first_in_the_queue_gets_the_next_places(costs in proptest::collection::vec(1u64..=LIMIT, 1..20)) {
        let mut record = BulkheadRecord::default();
        let mut now = 1_000_000;
        record.acquire(&request(99, 0, LIMIT, false), now);
        for (who, cost) in costs.iter().enumerate() {
            let full = record.acquire(&request(who as u8, 1, *cost, true), now).answer;
            let is_full = matches!(full, Admission::Full { .. });
            prop_assert!(is_full);
        }
        let mut holder = request(99, 0, LIMIT, false).lease;
        for (who, cost) in costs.iter().enumerate() {
            now += 1_000;
            let releases = [Release { lease: holder, fence: None }];
            let step = record.release(&releases, now);
            let me = request(who as u8, 1, *cost, true);
            prop_assert_eq!(step.up.first(), Some(&me.lease));
            let answer = record.acquire(&me, now).answer;
            let is_granted = matches!(answer, Admission::Granted { .. });
            prop_assert!(is_granted);
            holder = me.lease;
        }
    }
}

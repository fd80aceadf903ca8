//! Leases: what is spent was taken from the bucket before, whatever happens in between.

use tokio::{task::JoinSet, time::Instant};

use super::*;
use crate::test_counts::repetitions;

fn leased(server: &Server, quota: Quota) -> FleetRateLimitBuilder {
    FleetRateLimit::builder("leased")
        .store(server.clone())
        .limit("calls", quota)
        .mode(Mode::Leased(LeaseRules::new()))
}

/// What the store has left of a subject.
async fn left(limit: &FleetRateLimit, subject: &str) -> u64 {
    let decision = limit.peek(subject).await.unwrap();
    decision.binding().unwrap().remaining
}

#[tokio::test(start_paused = true)]
async fn bad_rules_are_refused_by_name() {
    let server = Server::default();
    for (rules, name) in [
        (LeaseRules::new().time(Duration::from_millis(9)), "time"),
        (LeaseRules::new().time(Duration::MAX), "time"),
        (LeaseRules::new().most(0), "most"),
        (LeaseRules::new().subjects(0), "subjects"),
    ] {
        let made = leased(&server, per(1, SECOND))
            .mode(Mode::Leased(rules))
            .build();
        assert_eq!(made.unwrap_err().field(), name);
    }
}

#[tokio::test(start_paused = true)]
async fn many_calls_cost_few_round_trips_and_none_of_them_waits_once_it_runs() {
    let server = Server::default();
    let limit = leased(&server, per(1_000_000, SECOND)).build().unwrap();
    let mut by_lease = 0;
    for number in 0..200_000 {
        let decision = limit.check("t", 1).await.unwrap();
        by_lease += u64::from(decision.decided_by() == DecidedBy::Lease);
        if number % 100 == 0 {
            advance(Duration::from_millis(1)).await;
        }
    }
    let asked = server.asked();
    assert!(asked < 200, "{asked}");
    assert!(by_lease == 200_000, "{by_lease}");
    assert_eq!(limit.snapshot().admitted, 200_000);
}

/// A thousand calls at once on a subject without earlier calls.
#[tokio::test(start_paused = true)]
async fn a_crowd_on_one_subject_asks_once_for_all() {
    let server = Server::default();
    let limit = leased(&server, per(600, HOUR)).build().unwrap();
    let mut crowd = JoinSet::new();
    for _ in 0..1000 {
        let limit = limit.clone();
        crowd.spawn(async move { limit.ask("t", 1).await.is_admitted() });
    }
    let admitted = crowd
        .join_all()
        .await
        .into_iter()
        .filter(|yes| *yes)
        .count();
    assert_eq!(admitted, 600);
    assert!(server.asked() <= 4);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_goes_back_when_the_lease_ends_and_when_the_handle_goes() {
    let server = Server::default();
    let look = ten(&server).build().unwrap();
    let quota = per(1000, HOUR);
    let build = || leased(&server, quota).build().unwrap();
    let spent = async |limit: &FleetRateLimit, calls| {
        for _ in 0..calls {
            assert!(limit.check("t", 1).await.is_ok());
        }
    };
    let limit = build();
    spent(&limit, 30).await;
    assert!(left(&limit, "t").await < 970, "some are leased");
    sleep(2 * SECOND).await;
    assert_eq!(left(&limit, "t").await, 970);
    spent(&limit, 30).await;
    limit.return_leases().await.unwrap();
    assert_eq!(left(&limit, "t").await, 940);
    spent(&limit, 30).await;
    drop(limit);
    settled().await;
    let limit = build();
    assert_eq!(left(&limit, "t").await, 910);
    drop(look);
}

/// A dropped call has not happened; what was asked for on its behalf is there for others.
#[tokio::test(start_paused = true)]
async fn a_call_dropped_while_the_store_is_asked_leaves_its_tokens_for_others() {
    let server = Server::default();
    let limit = leased(&server, per(10, HOUR)).build().unwrap();
    settled().await;
    for _ in 0..50 {
        let mut call = task::spawn(limit.ask("t", 5));
        assert!(call.poll().is_pending());
        drop(call);
        limit.return_leases().await.unwrap();
    }
    for _ in 0..2 {
        assert!(limit.check("t", 5).await.is_ok());
    }
    assert!(limit.check("t", 5).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_when_and_then_it_passes() {
    let server = Server::default();
    let limit = leased(&server, per(10, SECOND)).build().unwrap();
    for _ in 0..10 {
        assert!(limit.check("t", 1).await.is_ok());
    }
    server.asked();
    for _ in 0..20 {
        let refused = limit.ask("t", 1).await;
        let wait = refused.retry_after().unwrap();
        assert!(
            !wait.is_zero() && wait <= Duration::from_millis(110),
            "{wait:?}"
        );
        assert_eq!(limit.ask("t", 1).await.decided_by(), DecidedBy::Memory);
        advance(wait).await;
        assert!(limit.check("t", 1).await.is_ok());
    }
    let never = limit.check("t", 11).await.unwrap_err();
    assert_eq!(never.reason(), Reason::TooCostly);
    assert!(server.asked() < 100);
}

/// Twice as many calls as are allowed, without a break.
#[tokio::test(start_paused = true)]
async fn a_limit_that_is_reached_is_used_up_with_few_round_trips() {
    let server = Server::default();
    let quota = per(100_000, SECOND).burst(4_000).unwrap();
    let limit = leased(&server, quota).build().unwrap();
    let (start, mut admitted, mut calls) = (Instant::now(), 0_u32, 0_u32);
    while start.elapsed() < SECOND / 4 {
        admitted += u32::from(limit.ask("t", 1).await.is_admitted());
        calls += 1;
        if calls.is_multiple_of(20) {
            advance(Duration::from_micros(100)).await;
        }
    }
    assert!(
        (27_500..=29_010).contains(&admitted),
        "{admitted} of {calls}"
    );
    let asked = server.asked();
    assert!(asked < 200, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn several_limits_are_paid_together_or_not_at_all() {
    let server = Server::default();
    let limit = leased(&server, per(1000, HOUR))
        .limit("bytes", per(50_000, HOUR))
        .build()
        .unwrap();
    let costs = Costs::each(1).on("bytes", 100);
    let mut admitted = 0;
    while limit.ask("t", costs).await.is_admitted() {
        admitted += 1;
    }
    assert_eq!(admitted, 500);
    let refused = limit.ask("t", costs).await;
    assert_eq!(refused.binding().unwrap().name, "bytes");
    limit.return_leases().await.unwrap();
    let at_hand: Vec<_> = limit
        .peek("t")
        .await
        .unwrap()
        .limits()
        .map(|l| l.remaining)
        .collect();
    assert_eq!(at_hand, [500, 0]);
}

#[tokio::test(start_paused = true)]
async fn another_plan_gives_the_leases_of_the_old_one_back() {
    let server = Server::default();
    let plans = Plans::new();
    let limit = leased(&server, per(1000, HOUR))
        .plans(plans.clone())
        .build()
        .unwrap();
    for _ in 0..100 {
        assert!(limit.check("t", 1).await.is_ok());
    }
    plans.set("t", Plan::new().limit("calls", per(2000, HOUR)).unwrap());
    assert!(limit.check("t", 1).await.is_ok());
    settled().await;
    limit.return_leases().await.unwrap();
    assert_eq!(left(&limit, "t").await, 899);
}

#[tokio::test(start_paused = true)]
async fn leases_outlive_the_store_for_their_time_and_then_the_policy_has_the_word() {
    let server = Server::default();
    let limit = leased(&server, per(1_000, HOUR))
        .fleet(FleetOptions::new().on_outage(OnOutage::FailClosed))
        .build()
        .unwrap();
    for _ in 0..100 {
        assert!(limit.check("t", 1).await.is_ok());
    }
    server.down(true);
    let mut paid = 0;
    while limit.ask("t", 1).await.decided_by() == DecidedBy::Lease {
        paid += 1;
    }
    assert!(paid > 0);
    let rejected = limit.check("t", 1).await.unwrap_err();
    assert_eq!(rejected.reason(), Reason::StoreUnreachable);
}

/// A crowd behind one that asks a server that hangs: no call waits for more than one answer.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_those_who_wait_for_the_store() {
    let server = Server::default();
    let budget = Duration::from_millis(50);
    let limit = leased(&server, per(1_000, HOUR))
        .fleet(
            FleetOptions::new()
                .on_outage(OnOutage::FailClosed)
                .budget(budget),
        )
        .build()
        .unwrap();
    settled().await;
    server.hang(true);
    let mut crowd = JoinSet::new();
    for _ in 0..100 {
        let limit = limit.clone();
        crowd.spawn(async move {
            let start = Instant::now();
            let decision = limit.ask("t", 1).await;
            (decision.is_admitted(), start.elapsed())
        });
    }
    for (admitted, waited) in crowd.join_all().await {
        assert!(
            !admitted && waited <= budget + Duration::from_millis(2),
            "{waited:?}"
        );
    }
    server.hang(false);
    sleep(SECOND).await;
    assert!(limit.check("t", 1).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_subjects_are_given_back_when_a_program_ends() {
    let server = Server::default();
    let limit = leased(&server, per(1_000, HOUR)).build().unwrap();
    for subject in 0..1_000 {
        for _ in 0..5 {
            assert!(limit.check(&subject.to_string(), 1).await.is_ok());
        }
    }
    limit.return_leases().await.unwrap();
    for subject in 0..1_000 {
        assert_eq!(left(&limit, &subject.to_string()).await, 995);
    }
    server.hang(true);
    let start = Instant::now();
    let _ = limit.return_leases().await;
    assert!(
        start.elapsed() <= SECOND,
        "a store that hangs is not asked a thousand times"
    );
}

/// Leased tokens are where every instance can take them, the instance is off the list, and no more is leased.
#[tokio::test(start_paused = true)]
async fn a_shutdown_gives_all_leases_back_and_leaves_the_list() {
    let server = Server::default();
    let other = ten(&server).build().unwrap();
    let limit = leased(&server, per(1_000, HOUR)).build().unwrap();
    for _ in 0..100 {
        assert!(limit.check("t", 1).await.is_ok());
    }
    assert!(left(&other_of(&server), "t").await < 900, "some are leased");
    limit.shutdown(SECOND).await.unwrap();
    assert_eq!(left(&other_of(&server), "t").await, 900);
    for _ in 0..10 {
        let decision = limit.check("t", 1).await.unwrap();
        assert_eq!(decision.decided_by(), DecidedBy::Store);
    }
    assert_eq!(left(&other_of(&server), "t").await, 890);
    let listed = server
        .inner
        .heartbeat("leased", "looks", SECOND)
        .await
        .unwrap();
    assert_eq!(listed, 1, "the one that looks");
    drop(other);
}

fn other_of(server: &Server) -> FleetRateLimit {
    FleetRateLimit::builder("leased")
        .store(server.clone())
        .limit("calls", per(1_000, HOUR))
        .mode(Mode::Local)
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn tokens_go_back_when_the_store_was_away_for_a_moment_of_the_shutdown() {
    let server = Server::default();
    let limit = leased(&server, per(1_000, HOUR)).build().unwrap();
    for _ in 0..100 {
        assert!(limit.check("t", 1).await.is_ok());
    }
    server.down(true);
    let ending = limit.clone();
    let ending = tokio::spawn(async move { ending.shutdown(10 * SECOND).await });
    sleep(Duration::from_millis(200)).await;
    server.down(false);
    ending.await.unwrap().unwrap();
    assert_eq!(left(&other_of(&server), "t").await, 900);
}

#[tokio::test(start_paused = true)]
async fn subjects_beyond_the_bound_are_decided_by_the_store() {
    let server = Server::default();
    let rules = LeaseRules::new().subjects(2);
    let builder = leased(&server, per(1_000, HOUR)).mode(Mode::Leased(rules));
    let limit = builder.build().unwrap();
    for subject in ["a", "b", "c"] {
        let by: Vec<_> = [limit.ask(subject, 1).await, limit.ask(subject, 1).await]
            .iter()
            .map(Decision::decided_by)
            .collect();
        let expected = if subject == "c" {
            DecidedBy::Store
        } else {
            DecidedBy::Lease
        };
        assert_eq!(by, [expected; 2], "{subject}");
    }
    // Who is idle makes room.
    sleep(5 * SECOND).await;
    assert_eq!(limit.ask("c", 1).await.decided_by(), DecidedBy::Lease);
}

/// Instances with random demands, that come and go and whose calls are dropped, on a store that fails now and then:
/// at no time have more calls been let through than the burst and what was gained.
#[tokio::test(start_paused = true)]
async fn a_fleet_never_admits_more_than_there_was() {
    let mut wasted = 0;
    let fleets = repetitions(40);
    for _ in 0..fleets {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        wasted += one_fleet(&mut fastrand::Rng::with_seed(seed)).await;
    }
    assert!(
        wasted + 2 <= fleets,
        "{wasted} of {fleets} fleets hardly admitted anything"
    );
}

async fn one_fleet(rng: &mut fastrand::Rng) -> u32 {
    let server = Server::default();
    let rate = [10, 1_000, 100_000][rng.usize(0..3)];
    let burst = rng.u64(1..=rate);
    let quota = per(rate, SECOND).burst(burst).unwrap();
    let rules = LeaseRules::new().time(Duration::from_millis(rng.u64(10..2_000)));
    let build = || {
        let builder = leased(&server, quota).mode(Mode::Leased(rules));
        let options = FleetOptions::new().on_outage(OnOutage::FailClosed);
        builder.fleet(options).build().unwrap()
    };
    let mut fleet: Vec<_> = (0..rng.usize(1..6)).map(|_| build()).collect();
    let (start, mut asked, mut admitted) = (Instant::now(), 0_u64, 0_u64);
    for _ in 0..400 {
        let who = rng.usize(0..fleet.len());
        match rng.u8(0..40) {
            0 => fleet[who] = build(),
            1 => server.down(rng.u8(0..4) == 0),
            2 => fleet[who].return_leases().await.unwrap_or(()),
            3 => drop(task::spawn(fleet[who].ask("t", 1)).poll()),
            4 => sleep(rules.time.mul_f64(rng.f64() * 2.0)).await,
            _ => {}
        }
        let mut crowd = JoinSet::new();
        for _ in 0..rng.usize(1..30) {
            let (limit, cost) = (fleet[who].clone(), rng.u64(1..4).min(burst));
            asked += cost;
            crowd.spawn(async move {
                let decision = limit.ask("t", cost).await;
                if decision.is_admitted() { cost } else { 0 }
            });
        }
        admitted += crowd.join_all().await.into_iter().sum::<u64>();
        let gained = start.elapsed().as_micros() * u128::from(rate) / 1_000_000;
        let most = u128::from(burst) + gained + 1;
        assert!(u128::from(admitted) <= most, "{admitted} of {most}");
        sleep(Duration::from_micros(rng.u64(0..20_000))).await;
    }
    // Of a burst that was hardly asked for, nothing is wasted.
    u32::from(asked > 2 * burst && admitted < burst)
}

//! Settings that cannot work.

use std::time::Duration;

use super::{Idempotency, SECOND};
use crate::{
    fleet::{FleetOptions, OnOutage},
    idempotency::{
        Effect, IdempotencyBuilder, InProcessIdempotency, OnUnrecorded, store::MAX_OUTCOME,
    },
};

fn over(
    builder: IdempotencyBuilder,
    spoil: impl FnOnce(FleetOptions) -> FleetOptions,
) -> IdempotencyBuilder {
    let builder = builder.store(InProcessIdempotency::new());
    builder.fleet(spoil(FleetOptions::new()))
}

#[test]
fn what_cannot_work_is_said_when_it_is_built() {
    type Spoil = fn(IdempotencyBuilder) -> IdempotencyBuilder;
    let cases: [(&str, Spoil); 17] = [
        ("lease", |it| it.lease(Duration::from_millis(9))),
        ("max_lease_time", |it| it.max_lease_time(SECOND)),
        ("retention", |it| it.retention(600 * SECOND)),
        ("retention", |it| it.retention(Duration::MAX)),
        ("max_lease_time", |it| it.lease(Duration::MAX)),
        ("retention", |it| it.max_lease_time(Duration::MAX)),
        ("ttl", |it| it.ttl(Duration::ZERO)),
        ("ttl", |it| it.ttl(Duration::MAX)),
        ("budget", |it| {
            over(it, |fleet| fleet.budget(Duration::ZERO))
        }),
        ("budget", |it| over(it, |fleet| fleet.budget(31 * SECOND))),
        ("heartbeat", |it| over(it, |fleet| fleet.heartbeat(SECOND))),
        ("fleet", |it| it.fleet(FleetOptions::new())),
        ("wait", |it| it.wait(0, SECOND)),
        ("wait", |it| it.wait(1, Duration::ZERO)),
        ("on_unrecorded", |it| {
            it.on_unrecorded(OnUnrecorded::Hold(Duration::ZERO))
        }),
        ("on_outage", |it| {
            let it = it.effect(Effect::Fenced);
            over(it, |fleet| fleet.on_outage(OnOutage::FailOpen))
        }),
        ("max_outcome", |it| it.max_outcome(MAX_OUTCOME)),
    ];
    for (field, spoil) in cases {
        let error = spoil(Idempotency::builder("x")).build().unwrap_err();
        assert_eq!(error.field(), field, "{error}");
    }
    let large = Idempotency::builder("x").max_checkpoint(1 << 20).build();
    assert_eq!(large.unwrap_err().field(), "max_checkpoint");
    assert!(Idempotency::builder("x").build().is_ok());
    // The default budget is no longer than the lease.
    let short = Idempotency::builder("x").lease(Duration::from_millis(10));
    assert!(short.build().is_ok());
}

//! The metrics of a fleet rate limit.

use super::limiter::Limiter;
use crate::{
    error::Pattern,
    telemetry::{self, Metric, Reading, Source},
};

impl Source for Limiter {
    fn pattern(&self) -> Pattern {
        Pattern::RateLimit
    }

    fn name(&self) -> &str {
        &self.settings.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.counts.read(out);
        out(Reading {
            metric: &telemetry::LIMIT_WAITING,
            attribute: "",
            value: self.queues.waiting() as u64,
        });
        out(Reading {
            metric: &telemetry::FLEET_DEGRADED,
            attribute: Pattern::RateLimit.as_str(),
            value: (!self.client.is_available()).into(),
        });
    }

    fn read_named(&self, out: &mut dyn FnMut(&'static Metric, &str, u64)) {
        self.counts.read_named(out);
        let mut leased = vec![0; self.counts.lines()];
        for pool in self.pools.pin().values() {
            for (index, limit) in pool.plan.as_slice().iter().enumerate() {
                leased[self.counts.line(&limit.name)] += pool.level(index);
            }
        }
        for (line, tokens) in leased.into_iter().enumerate() {
            out(&telemetry::LIMIT_LEASED, self.counts.name_of(line), tokens);
        }
    }
}

//! The steps of the broker for one process.

use super::{InProcessStreams, group::Group, trim::trim};
use crate::stream::{
    broker::{StoreError, StoreFuture, StreamBroker, validate},
    message::{Position, RawMessage},
    steps::{
        Batch, Begin, Begun, Claim, Claimed, DeadLetter, Held, Join, Joined, Pause, PendingMessage,
        Publish, Published, Read, Retention, Settled, Settlement, Start, StreamState, Trimmed,
    },
};

fn ready<'a, T: Send + 'a>(answer: Result<T, StoreError>) -> StoreFuture<'a, T> {
    Box::pin(std::future::ready(answer))
}

impl StreamBroker for InProcessStreams {
    fn publish<'a>(
        &'a self,
        stream: &'a str,
        publish: &'a Publish,
    ) -> StoreFuture<'a, Vec<Published>> {
        ready(self.publish_now(stream, publish))
    }

    fn join<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        join: &'a Join,
    ) -> StoreFuture<'a, Joined> {
        ready(self.join_now(stream, group, join))
    }

    fn leave<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
    ) -> StoreFuture<'a, bool> {
        let left = self.on_group(stream, group, Ok(()), |group, _, _| {
            Some(group.leave(consumer))
        });
        ready(left.map(|left| left.unwrap_or(true)))
    }

    fn read<'a>(&'a self, group: &'a str, read: Read<'a>) -> StoreFuture<'a, Batch> {
        Box::pin(self.read_soon(group, read))
    }

    fn claim<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        claim: Claim<'a>,
    ) -> StoreFuture<'a, Claimed> {
        ready(self.claim_now(stream, group, &claim))
    }

    fn extend<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<Held>> {
        let checked = validate::positions(positions.iter().copied());
        let held = self.on_group(stream, group, checked, |group, _, now| {
            let extend = |at: &Position| group.extend(consumer, *at, now);
            Some(positions.iter().map(extend).collect())
        });
        ready(held.map(|held| held.unwrap_or_else(|| vec![Held::Gone; positions.len()])))
    }

    fn begin<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        begins: &'a [Begin],
    ) -> StoreFuture<'a, Vec<Begun>> {
        let checked = validate::begins(begins);
        let begun = self.on_group(stream, group, checked, |group, _, now| {
            let begin = |it: &Begin| group.begin(consumer, it, now);
            Some(begins.iter().map(begin).collect())
        });
        let gone = || vec![Begun::Lost(Held::Gone); begins.len()];
        ready(begun.map(|begun| begun.unwrap_or_else(gone)))
    }

    fn settle<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        settlements: &'a [Settlement],
    ) -> StoreFuture<'a, Vec<Settled>> {
        let checked = validate::settlements(settlements);
        let settled = self.on_group(stream, group, checked, |group, log, now| {
            let settle = |it: &Settlement| group.settle(log, consumer, it, now);
            Some(settlements.iter().map(settle).collect())
        });
        let gone = || vec![Settled::Gone; settlements.len()];
        ready(settled.map(|settled| settled.unwrap_or_else(gone)))
    }

    fn seek<'a>(&'a self, stream: &'a str, group: &'a str, to: Start) -> StoreFuture<'a, bool> {
        let checked = validate::name("name of the group", group);
        let sought = self.step(stream, checked, |_, it, now| {
            let cursor = it.log.cursor(to, now);
            let group = it.groups.entry(group.into());
            let group = group.or_insert_with(|| Group::new(cursor, now));
            group.cursor = cursor;
            true
        });
        self.0.arrived.notify_waiters();
        ready(sought)
    }

    fn trim<'a>(&'a self, stream: &'a str, retention: &'a Retention) -> StoreFuture<'a, Trimmed> {
        let checked = validate::retention(retention);
        ready(self.step(stream, checked, |_, it, now| trim(retention, it, now)))
    }

    fn pause<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        pause: Option<&'a Pause>,
    ) -> StoreFuture<'a, bool> {
        let checked = pause.map_or(Ok(()), validate::pause);
        let paused = self.on_group(stream, group, checked, |group, _, now| {
            group.pause(pause, now);
            true
        });
        self.0.arrived.notify_waiters();
        ready(paused)
    }

    fn state<'a>(&'a self, stream: &'a str) -> StoreFuture<'a, Option<StreamState>> {
        ready(self.step(stream, Ok(()), |_, it, now| {
            let groups = it.groups.iter();
            Some(StreamState {
                length: it.log.len(),
                delayed: it.log.delayed(),
                first: it.log.first(),
                last: it.log.last(),
                incarnation: it.log.incarnation,
                groups: groups
                    .map(|(name, group)| group.state(name, &it.log, now))
                    .collect(),
            })
        }))
    }

    fn peek<'a>(
        &'a self,
        stream: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<(Position, RawMessage)>> {
        ready(self.step(stream, Ok(()), |_, it, _| {
            let messages = it.log.from(from).take(max.min(validate::MAX_BATCH));
            messages.map(|(at, it)| (at, it.clone())).collect()
        }))
    }

    fn pending<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<PendingMessage>> {
        let max = max.min(validate::MAX_BATCH);
        ready(self.on_group(stream, group, Ok(()), |it, _, now| {
            it.pending(from, max, now)
        }))
    }

    fn dead_letters<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<DeadLetter>> {
        let max = max.min(validate::MAX_BATCH);
        ready(self.on_group(stream, group, Ok(()), |it, _, now| {
            it.dead_letters(from, max, now)
        }))
    }

    fn redrive<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        let checked = validate::positions(positions.iter().copied());
        let redriven = self.on_group(stream, group, checked, |group, _, now| {
            let redrive = |at: &Position| group.redrive(*at, now);
            Some(positions.iter().map(redrive).collect())
        });
        ready(redriven.map(|it| it.unwrap_or_else(|| vec![false; positions.len()])))
    }

    fn drop_dead<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        let checked = validate::positions(positions.iter().copied());
        let dropped = self.on_group(stream, group, checked, |group, _, _| {
            let drop_dead = |at: &Position| group.drop_dead(*at);
            Some(positions.iter().map(drop_dead).collect())
        });
        ready(dropped.map(|it| it.unwrap_or_else(|| vec![false; positions.len()])))
    }

    fn remove_group<'a>(&'a self, stream: &'a str, group: &'a str) -> StoreFuture<'a, bool> {
        let removed = self.step(stream, Ok(()), |_, it, _| it.groups.remove(group).is_some());
        self.0.arrived.notify_waiters();
        ready(removed)
    }
}

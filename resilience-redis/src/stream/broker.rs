//! The steps: words for the scripts, and their answers read.

use redis::Value;
use resilience_core::{
    fleet::StoreHandle,
    stream::{
        Batch, Begin, Begun, Claim, Claimed, DeadLetter, Held, Join, Joined, Pause, PendingMessage,
        Position, Publish, Published, RawMessage, Read, Retention, Settled, Settlement, Start,
        StreamBroker, StreamState, Trimmed,
        broker::{StoreError, StoreFuture, validate},
    },
};

use super::{
    PATTERN, RedisStreams,
    steps::{
        BEGIN, CLAIM, EXTEND, JOIN, LEAVE, LETTERS, PAUSE, PEEK, PENDING, REDRIVE, REMOVE, SEEK,
        SETTLE, STATE, TRIM,
    },
    wire,
    words::{Words, all_begins, all_settlements, incarnation, of_group, range, start},
};
use crate::{keys, script::Script};

impl StreamBroker for RedisStreams {
    fn publish<'a>(
        &'a self,
        stream: &'a str,
        publish: &'a Publish,
    ) -> StoreFuture<'a, Vec<Published>> {
        Box::pin(self.publish_checked(stream, publish))
    }

    fn join<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        join: &'a Join,
    ) -> StoreFuture<'a, Joined> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            validate::join(join)?;
            let mut words = of_group(group, &join.consumer);
            words
                .text(&incarnation())
                .text(&join.lease_ms)
                .text(&join.keep_ms);
            start(join.start, &mut words)?;
            let (known, after) = join.resume.map_or((0, Position::START), |resume| {
                (resume.incarnation, resume.after)
            });
            words.text(&known).text(&after);
            words.text(&keys::bounded_part(group));
            self.step(&JOIN, &keys, &words, wire::joined).await
        })
    }

    fn leave<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            let words = of_group(group, consumer);
            self.step(&LEAVE, &keys, &words, |it| wire::flag(&it)).await
        })
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
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            validate::claim(&claim)?;
            let mut words = of_group(group, claim.consumer);
            words.text(&claim.max);
            let read = |answer| wire::claimed(stream, answer);
            self.step(&CLAIM, &keys, &words, read).await
        })
    }

    fn extend<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<Held>> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            validate::positions(positions.iter().copied())?;
            if positions.is_empty() {
                return Ok(Vec::new());
            }
            let mut words = of_group(group, consumer);
            range(positions.iter().copied(), &mut words);
            for position in positions {
                words.text(&position);
            }
            self.step(&EXTEND, &keys, &words, wire::held).await
        })
    }

    fn begin<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        begins: &'a [Begin],
    ) -> StoreFuture<'a, Vec<Begun>> {
        Box::pin(async move {
            let mut keys = self.of_group(stream, group)?;
            validate::begins(begins)?;
            if begins.is_empty() {
                return Ok(Vec::new());
            }
            let mut words = of_group(group, consumer);
            all_begins(begins, &mut words, &mut keys);
            let read = |answer| wire::begun(answer, begins.len());
            self.step(&BEGIN, &keys, &words, read).await
        })
    }

    fn settle<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        settlements: &'a [Settlement],
    ) -> StoreFuture<'a, Vec<Settled>> {
        Box::pin(async move {
            let mut keys = self.of_group(stream, group)?;
            validate::settlements(settlements)?;
            if settlements.is_empty() {
                return Ok(Vec::new());
            }
            let mut words = of_group(group, consumer);
            all_settlements(settlements, &mut words, &mut keys)?;
            let read = |answer| wire::settled(answer, settlements.len());
            self.step(&SETTLE, &keys, &words, read).await
        })
    }

    fn seek<'a>(&'a self, stream: &'a str, group: &'a str, to: Start) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            let mut words = of_group(group, "");
            start(to, &mut words)?;
            words.text(&keys::bounded_part(group));
            self.step(&SEEK, &keys, &words, |it| wire::flag(&it)).await
        })
    }

    fn trim<'a>(&'a self, stream: &'a str, retention: &'a Retention) -> StoreFuture<'a, Trimmed> {
        Box::pin(async move {
            let keys = self.of_stream(stream)?;
            validate::retention(retention)?;
            let mut words = Words::default();
            let lengths = retention.max_length.map(|it| it.min(validate::BEYOND - 1));
            for bound in [retention.max_age_ms, lengths, retention.settled] {
                match bound {
                    Some(bound) => words.text(&bound),
                    None => words.text(&-1),
                };
            }
            words.text(&retention.keep_ms);
            self.step(&TRIM, &keys, &words, wire::trimmed).await
        })
    }

    fn pause<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        pause: Option<&'a Pause>,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            pause.map_or(Ok(()), validate::pause)?;
            let mut words = of_group(group, "");
            match pause {
                None => words.text(""),
                Some(pause) => {
                    match pause.for_ms {
                        Some(ms) => words.text(&ms.min(validate::MAX_MS)),
                        None => words.text(&-1),
                    };
                    words.text(&pause.by).text(&pause.reason)
                }
            };
            self.step(&PAUSE, &keys, &words, |it| wire::flag(&it)).await
        })
    }

    fn state<'a>(&'a self, stream: &'a str) -> StoreFuture<'a, Option<StreamState>> {
        Box::pin(async move {
            let keys = self.of_stream(stream)?;
            self.step(&STATE, &keys, &Words::default(), wire::state)
                .await
        })
    }

    fn peek<'a>(
        &'a self,
        stream: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<(Position, RawMessage)>> {
        Box::pin(async move {
            let keys = self.of_stream(stream)?;
            let mut words = Words::default();
            words.text(&from).text(&max.min(validate::MAX_BATCH));
            self.step(&PEEK, &keys, &words, wire::entries).await
        })
    }

    fn pending<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<PendingMessage>> {
        Box::pin(self.page(&PENDING, (stream, group), from, max, wire::pending))
    }

    fn dead_letters<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<DeadLetter>> {
        Box::pin(self.page(&LETTERS, (stream, group), from, max, wire::dead_letters))
    }

    fn redrive<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        Box::pin(self.end_dead(stream, group, positions, 1))
    }

    fn drop_dead<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        Box::pin(self.end_dead(stream, group, positions, 0))
    }

    fn remove_group<'a>(&'a self, stream: &'a str, group: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let keys = self.of_group(stream, group)?;
            let words = of_group(group, "");
            self.step(&REMOVE, &keys, &words, |it| wire::flag(&it))
                .await
        })
    }

    fn announce<'a>(&'a self, stream: &'a str) -> Option<StoreFuture<'a, ()>> {
        Some(Box::pin(async move {
            let entered = self.context.enter(PATTERN, &[stream]).await;
            Ok(entered.map(drop)?)
        }))
    }

    fn is_sharded(&self) -> bool {
        self.context.connection.is_cluster()
    }

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.context.handle)
    }
}

impl RedisStreams {
    async fn page<T>(
        &self,
        script: &Script,
        (stream, group): (&str, &str),
        from: Position,
        max: usize,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, StoreError> {
        let keys = self.of_group(stream, group)?;
        let mut words = of_group(group, "");
        words.text(&from).text(&max.min(validate::MAX_BATCH));
        self.step(script, &keys, &words, read).await
    }

    async fn end_dead(
        &self,
        stream: &str,
        group: &str,
        positions: &[Position],
        redrives: u8,
    ) -> Result<Vec<bool>, StoreError> {
        let keys = self.of_group(stream, group)?;
        validate::positions(positions.iter().copied())?;
        let mut words = of_group(group, "");
        words.text(&redrives);
        for position in positions {
            words.text(&position);
        }
        self.step(&REDRIVE, &keys, &words, wire::flags).await
    }
}

//! Publishes: by a script, or without one.

use redis::{Pipeline, Value};
use resilience_core::stream::{
    Outgoing, ProducerSequence, Publish, Published,
    broker::{StoreError, validate},
};

use super::{
    RedisStreams, message,
    steps::{KEEP, PUBLISH},
    wire,
    words::{StreamKeys, Words, incarnation},
};
use crate::keys;

/// Publishes of at least this many messages, without numbers and delays, are commands in place of a script: they cost the server half
/// as much. Below, the three commands that come with them cost more than a script does.
const WORTHWHILE: usize = 8;
/// A stream that ends later than this is not near its end, however long it is kept.
const HALF_A_DAY: u64 = 43_200_000;
const DAY: u64 = 86_400_000;

impl RedisStreams {
    pub(super) async fn publish_checked(
        &self,
        stream: &str,
        publish: &Publish,
    ) -> Result<Vec<Published>, StoreError> {
        let keys = self.of_stream(stream)?;
        validate::publish(publish)?;
        let messages = &publish.messages;
        let is_plain = publish.sequence.is_none() && messages.iter().all(|it| it.delay_ms == 0);
        // The client of a Cluster does not tell which of several commands were done before a slot had moved.
        if is_plain && messages.len() >= WORTHWHILE && !self.context.connection.is_cluster() {
            self.publish_plain(keys, messages).await
        } else {
            let sequence = publish.sequence.as_ref();
            self.publish_by_script(keys, messages, sequence).await
        }
    }

    async fn publish_by_script(
        &self,
        mut keys: StreamKeys,
        messages: &[Outgoing],
        sequence: Option<&ProducerSequence>,
    ) -> Result<Vec<Published>, StoreError> {
        let mut words = Words::default();
        words.text(&incarnation());
        let (first, keep_ms) = sequence.map_or((0, 0), |it| (it.first, it.keep_ms));
        words.text(&first).text(&keep_ms).text(&messages.len());
        if let Some(sequence) = sequence {
            let producer = keys::bounded_part(&sequence.producer);
            keys.all.push(format!("{}:producer:{producer}", keys.tag));
        }
        for outgoing in messages {
            message::outgoing(outgoing, &mut words);
        }
        self.step(&PUBLISH, &keys, &words, wire::published).await
    }

    /// Adds messages one by one, in one piece and one round trip. From the first one on that is not added, because the stream does
    /// not exist or for any other reason, the script has to do it, or to say why not.
    async fn publish_plain(
        &self,
        keys: StreamKeys,
        messages: &[Outgoing],
    ) -> Result<Vec<Published>, StoreError> {
        let (log, meta) = (&keys.all[0], &keys.all[1]);
        let mut cmds = Pipeline::with_capacity(messages.len() + 3);
        for outgoing in messages {
            cmds.add_command(message::add(log, &outgoing.message));
        }
        cmds.cmd("PTTL").arg(log).cmd("HGET").arg(meta).arg("keep");
        let answers = self.context.connection.ask_each(log, cmds).await;
        let mut answers = answers.map_err(|error| self.context.of_key(error))?;
        let times = answers.split_off(messages.len());
        let is_added = |it: &Value| matches!(it, Value::BulkString(_));
        let many = answers.iter().take_while(|it| is_added(it)).count();
        if answers[many..].iter().any(is_added) {
            let reason = "some of the messages were stored, and others before them refused";
            return Err(StoreError::new(reason, true));
        }
        answers.truncate(many);
        let stored = answers.into_iter().map(wire::position);
        let stored: Option<Vec<_>> = stored.map(|it| it.map(Published::Stored)).collect();
        let mut stored = stored.ok_or_else(|| wire::unexpected("no positions"))?;
        if many < messages.len() {
            let rest = self.publish_by_script(keys, &messages[many..], None).await;
            stored.extend(rest.map_err(|mut error| {
                error.ambiguous |= many > 0;
                error
            })?);
        } else if is_near_its_end(times) {
            let words = Words::default();
            // The next publish asks again, if that fails.
            let _ = self.step(&KEEP, &keys, &words, |it| wire::flag(&it)).await;
        }
        Ok(stored)
    }
}

/// By the answers to PTTL and to HGET.
fn is_near_its_end(times: Vec<Value>) -> bool {
    let Ok([left, kept]) = <[Value; 2]>::try_from(times) else {
        return true;
    };
    let left = wire::number(&left).unwrap_or(0);
    let kept = wire::text(kept).and_then(|it| it.parse().ok());
    left <= HALF_A_DAY && left <= kept.unwrap_or(DAY) / 2
}

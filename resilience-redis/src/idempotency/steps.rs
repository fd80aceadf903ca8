//! The scripts on a record, and how they are run.

use std::sync::LazyLock;

use redis::Value;
use resilience_core::idempotency::{
    record::{Claim, Claimed, Holder, WriteOutcome},
    store::{StoreError, validate},
};
use tokio::time::Instant;

use super::{PATTERN, RedisIdempotency, wire};
use crate::{error::CommandError, keys, script::Script};

macro_rules! script {
    ($id:ident, $($file:literal),+) => {
        pub(super) static $id: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!($(include_str!($file), "\n"),+))
        });
    };
}

macro_rules! step {
    ($id:ident, $file:literal) => {
        script!(
            $id,
            "read_head.lua",
            "time.lua",
            "common.lua",
            "holder.lua",
            $file,
            "save.lua"
        );
    };
}

script!(
    CLAIM,
    "read_full.lua",
    "time.lua",
    "common.lua",
    "claim_new.lua",
    "clamp.lua",
    "claim.lua"
);
step!(EXTEND, "extend.lua");
step!(CHECKPOINT, "checkpoint.lua");
script!(
    COMPLETE,
    "read_head.lua",
    "complete_fast.lua",
    "common.lua",
    "holder.lua",
    "complete.lua"
);
step!(RELEASE, "release.lua");
script!(
    RESOLVE,
    "read_head.lua",
    "time.lua",
    "common.lua",
    "clamp.lua",
    "resolve.lua",
    "save.lua"
);
script!(
    SET_BACK,
    "read_head.lua",
    "time.lua",
    "common.lua",
    "set_back.lua"
);
script!(GET, "read_head.lua", "time.lua", "common.lua", "get.lua");

impl RedisIdempotency {
    pub(super) fn key(&self, name: &str, key: &str) -> Result<String, StoreError> {
        validate::key(key)?;
        Ok(self.part(name, key, "record"))
    }

    pub(super) fn part(&self, name: &str, key: &str, part: &str) -> String {
        let mut whole = keys::subject_tag(&self.context.prefix, PATTERN, name, key);
        whole.push(':');
        whole.push_str(part);
        whole
    }

    /// Runs a script on a record. If the store is durable and `lasts` holds of the answer, waits for the replicas.
    pub(super) async fn run<T>(
        &self,
        script: &Script,
        key: &str,
        args: &[&[u8]],
        lasts: impl FnOnce(&T) -> bool,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, StoreError> {
        let Some(durable) = &self.durable else {
            let answer = script.run(&self.context.connection, &[key], args).await;
            return self.understood(answer, read);
        };
        let waited = script
            .run_and_wait(
                &durable.connection,
                &[key],
                args,
                durable.replicas,
                durable.within,
            )
            .await;
        let (answer, replicas) = waited.map_err(|error| self.context.of_key(error))?;
        let answer = self.understood(Ok(answer), read)?;
        if lasts(&answer) && replicas < u64::from(durable.replicas) {
            let wanted = durable.replicas;
            let reason = format!("{replicas} of {wanted} replicas have it so far");
            return Err(StoreError::new(reason, true));
        }
        Ok(answer)
    }

    pub(super) fn understood<T>(
        &self,
        answer: Result<Value, CommandError>,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, StoreError> {
        let answer = answer.map_err(|error| self.context.of_key(error))?;
        // Leaves outcomes out of errors: they may be confidential.
        let (kind, size) = match &answer {
            Value::Array(items) => ("a list of", items.len()),
            Value::BulkString(bytes) => ("bytes:", bytes.len()),
            _ => ("neither list nor text, but values:", 1),
        };
        read(answer).ok_or_else(|| CommandError::Unexpected(format!("{kind} {size}")).into())
    }

    /// Claims again what was just granted, under a fence above `floor`: the record was lost, and the server's clock is behind
    /// the fences that this process was given.
    pub(super) async fn raised(
        &self,
        key: &str,
        claim: &Claim,
        asked: &[u8],
        floor: u64,
    ) -> Result<Claimed, StoreError> {
        let floor = floor.to_string();
        let now = self.context.connection.clock().now();
        let read = |answer| wire::claimed(answer, claim, now);
        let args: [&[u8]; 2] = [asked, floor.as_bytes()];
        let claimed = self.run(&CLAIM, key, &args, is_granted, read).await?;
        // No caller has heard of the grant under the lower fence.
        Ok(match claimed {
            Claimed::Mine(grant) => Claimed::New(grant),
            other => other,
        })
    }

    /// Sees to it that an outcome is not kept for longer than was asked for, when the server's clock was set back, or that may
    /// have happened unnoticed. What fails is done with a later replay.
    pub(super) async fn end_in_time(&self, key: &str) {
        let sent = Instant::now();
        let answer = SET_BACK.run(&self.context.connection, &[key], &[]).await;
        if let Ok(Value::Int(now)) = answer
            && let Ok(now) = u64::try_from(now)
        {
            self.context.connection.clock().shows(now);
            self.context.shown(sent, now);
        }
    }

    pub(super) async fn rest(
        &self,
        name: &str,
        key: &str,
        holder: &Holder,
        how: u64,
    ) -> Result<WriteOutcome, StoreError> {
        validate::holder(holder)?;
        let record = wire::record(holder, None, b"");
        self.step(&RELEASE, name, key, &record, how, true).await
    }

    /// Runs a step of the holder, with its record and a number that the script takes; `lasts` as in [`run`](Self::run).
    pub(super) async fn step(
        &self,
        script: &Script,
        name: &str,
        key: &str,
        record: &[u8],
        number: u64,
        lasts: bool,
    ) -> Result<WriteOutcome, StoreError> {
        let key = self.key(name, key)?;
        let number = number.to_string();
        let args: [&[u8]; 2] = [record, number.as_bytes()];
        let lasts = |kept: &WriteOutcome| {
            lasts && matches!(kept, WriteOutcome::Kept | WriteOutcome::Restored)
        };
        self.run(script, &key, &args, lasts, wire::kept).await
    }
}

pub(super) const fn is_granted(claimed: &Claimed) -> bool {
    matches!(claimed, Claimed::New(_) | Claimed::Mine(_))
}

pub(super) const fn fence(claimed: &Claimed) -> Option<u64> {
    match claimed {
        Claimed::New(grant) | Claimed::Mine(grant) => Some(grant.fence),
        _ => None,
    }
}

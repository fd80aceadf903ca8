//! One suite for every broker of streams, asked through the trait.
//!
//! Each check takes a fresh stream, so that all can run on one server. Times are real: they are so long that they do not end
//! while a check runs, or so short that their end is waited for with a bound.

mod bounds;
mod dead;
mod effects;
mod groups;
mod leases;
mod publishing;
mod settling;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::stream::{
    Action, Claim, Claimed, Delivery, Envelope, Held, Join, Joined, Outgoing, Position, Publish,
    Published, RawMessage, Read, Settled, Settlement, Start, StreamBroker, StreamState,
};

const HOUR: u64 = 3_600_000;
const SOON: Duration = Duration::from_secs(10);
/// So short that its end can be waited for.
const SHORT: u64 = 50;

/// Runs every check on `broker`; `flush` makes it forget everything.
pub async fn all(broker: &Arc<dyn StreamBroker>, flush: &(dyn Fn() + Sync)) {
    let it = &**broker;
    publishing::messages_are_read_as_they_were_published(it).await;
    publishing::positions_rise_over_all_publishes(it).await;
    publishing::a_repeated_publish_is_stored_once(it).await;
    publishing::producers_do_not_leak_into_each_other(it).await;
    publishing::a_delayed_message_is_not_there_before_its_time(it).await;
    publishing::a_repeated_delayed_publish_is_stored_once(it).await;
    groups::each_group_is_given_every_message_once(it).await;
    groups::consumers_of_a_group_share_its_messages(it).await;
    groups::a_group_begins_where_it_is_told(it).await;
    groups::a_reader_is_woken_by_a_publish(broker).await;
    groups::one_read_is_over_several_streams(it).await;
    groups::a_stream_without_the_group_is_missing(it).await;
    groups::a_seek_moves_the_cursor_back_and_forth(it).await;
    groups::a_seek_takes_what_is_held_after_it(it).await;
    groups::a_paused_group_is_claimed_nothing(it).await;
    groups::a_group_that_is_lost_goes_on_where_its_consumer_was(it).await;
    groups::a_consumer_leaves_only_with_nothing_in_its_hands(it).await;
    groups::streams_and_groups_do_not_leak_into_each_other(it).await;
    leases::a_message_whose_lease_ends_is_claimed_once(it).await;
    leases::a_lease_that_is_extended_does_not_end(it).await;
    leases::a_lease_is_that_of_its_holder(it).await;
    leases::a_holder_whose_lease_ended_may_still_settle(it).await;
    leases::reading_again_does_not_count_as_a_delivery(it).await;
    leases::old_leases_are_found_behind_many_fresh_ones(it).await;
    leases::a_crowd_claims_each_message_once(broker).await;
    settling::an_acknowledged_message_is_gone(it).await;
    settling::a_zombie_changes_nothing(it).await;
    settling::a_retry_comes_when_it_is_due_and_not_before(it).await;
    settling::a_message_given_back_is_not_counted(it).await;
    settling::many_are_settled_at_once_each_by_itself(it).await;
    settling::a_repeated_settlement_is_gone(it).await;
    dead::a_dead_letter_keeps_its_message_and_history(it).await;
    dead::a_dead_letter_is_redriven_to_its_group_only(it).await;
    dead::a_dead_letter_outlives_its_message(it).await;
    dead::dead_letters_are_dropped_and_paged(it).await;
    effects::an_effect_is_recorded_with_its_acknowledgement(it).await;
    effects::an_effect_is_not_recorded_without_its_message(it).await;
    effects::a_copy_of_an_event_finds_the_effect(it).await;
    effects::a_copy_waits_while_the_first_is_held(it).await;
    effects::each_attempt_has_a_higher_fence(it).await;
    effects::a_fence_that_was_passed_is_refused(it).await;
    effects::effects_belong_to_their_group(it).await;
    effects::an_effect_is_forgotten_when_its_time_is_over(it).await;
    bounds::a_stream_is_trimmed_by_length_and_tells_what_was_skipped(it).await;
    bounds::a_stream_is_trimmed_by_age(it).await;
    bounds::a_stream_is_trimmed_by_what_every_group_has_settled(it).await;
    bounds::a_group_without_consumers_is_not_waited_for(it).await;
    bounds::a_trimmed_message_is_claimed_without_its_body(it).await;
    bounds::the_lag_is_right_after_trims(it).await;
    bounds::every_byte_and_number_is_returned(it).await;
    bounds::what_makes_no_sense_is_refused(it).await;
    bounds::what_is_lost_is_noticed(it, flush).await;
}

/// A stream of its own, and a group.
struct Case<'a> {
    it: &'a dyn StreamBroker,
    stream: String,
    group: &'static str,
}

impl<'a> Case<'a> {
    fn new(it: &'a dyn StreamBroker, name: &str) -> Self {
        let stream = format!("{name}-{:016x}", fastrand::u64(..));
        Self {
            it,
            stream,
            group: "group",
        }
    }

    /// With the consumers `a` and `b`, whose leases do not end.
    async fn joined(it: &'a dyn StreamBroker, name: &str) -> Self {
        let case = Self::new(it, name);
        case.join("a", HOUR).await;
        case.join("b", HOUR).await;
        case
    }

    fn of_group(&self, group: &'static str) -> Self {
        Self {
            it: self.it,
            stream: self.stream.clone(),
            group,
        }
    }

    async fn join(&self, consumer: &str, lease_ms: u64) -> Joined {
        let join = Join {
            lease_ms,
            ..join(consumer)
        };
        self.join_as(&join).await
    }

    async fn join_as(&self, join: &Join) -> Joined {
        let joined = self.it.join(&self.stream, self.group, join).await;
        joined.expect("an answer")
    }

    /// Publishes events whose id and body are their name.
    async fn publish(&self, events: &[&str]) -> Vec<Position> {
        let messages = events.iter().map(|it| outgoing(it, 0)).collect();
        let published = self.publish_as(messages).await;
        published.into_iter().map(stored).collect()
    }

    async fn publish_as(&self, messages: Vec<Outgoing>) -> Vec<Published> {
        let publish = Publish {
            messages,
            sequence: None,
        };
        let published = self.it.publish(&self.stream, &publish).await;
        published.expect("an answer")
    }

    async fn read(&self, consumer: &str, max: usize) -> Vec<Delivery> {
        let read = Read {
            streams: &[&self.stream],
            consumer,
            max,
            block_ms: 0,
        };
        let batch = self.it.read(self.group, read).await.expect("an answer");
        assert!(batch.missing.is_empty(), "{batch:?}");
        batch.deliveries
    }

    /// Reads one message.
    async fn one(&self, consumer: &str) -> Delivery {
        let mut read = self.read(consumer, 1).await;
        assert_eq!(read.len(), 1, "a message to read");
        read.remove(0)
    }

    async fn claim_as(&self, consumer: &str, max: usize) -> Claimed {
        let claim = Claim { consumer, max };
        let claimed = self.it.claim(&self.stream, self.group, claim).await;
        claimed.expect("an answer")
    }

    async fn claim(&self, consumer: &str) -> Vec<Delivery> {
        self.claim_as(consumer, 100).await.deliveries
    }

    /// Reads until there were `many` messages, delayed ones included.
    async fn read_many_soon(&self, consumer: &str, many: usize) -> Vec<Delivery> {
        let mut read = Vec::new();
        let reading = async {
            while read.len() < many {
                self.claim_as(consumer, 0).await;
                read.extend(self.read(consumer, many).await);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let in_time = tokio::time::timeout(SOON, reading).await;
        assert!(in_time.is_ok(), "no messages to read within {SOON:?}");
        assert_eq!(read.len(), many);
        read
    }

    /// Claims until there is a message.
    async fn claim_soon(&self, consumer: &str) -> Delivery {
        let mut claimed = self.claim_many_soon(consumer, 1).await;
        claimed.remove(0)
    }

    /// Claims until there were `many` messages.
    async fn claim_many_soon(&self, consumer: &str, many: usize) -> Vec<Delivery> {
        let mut claimed = Vec::new();
        let claiming = async {
            while claimed.len() < many {
                let more = self.claim(consumer).await;
                if more.is_empty() {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                claimed.extend(more);
            }
        };
        let in_time = tokio::time::timeout(SOON, claiming).await;
        assert!(in_time.is_ok(), "no messages to claim within {SOON:?}");
        assert_eq!(claimed.len(), many);
        claimed
    }

    async fn extend(&self, consumer: &str, position: Position) -> Held {
        let positions = [position];
        let held = self
            .it
            .extend(&self.stream, self.group, consumer, &positions)
            .await;
        held.expect("an answer")[0]
    }

    async fn settle(&self, consumer: &str, of: &Delivery, action: Action) -> Settled {
        let settlement = Settlement {
            position: of.position,
            action,
        };
        let settled = self.settle_all(consumer, &[settlement]).await;
        settled[0]
    }

    async fn settle_all(&self, consumer: &str, settlements: &[Settlement]) -> Vec<Settled> {
        let settled = self
            .it
            .settle(&self.stream, self.group, consumer, settlements)
            .await;
        let settled = settled.expect("an answer");
        assert_eq!(settled.len(), settlements.len());
        settled
    }

    async fn ack(&self, consumer: &str, of: &Delivery) {
        let settled = self.settle(consumer, of, Action::Ack(None)).await;
        assert_eq!(settled, Settled::Done);
    }

    async fn state(&self) -> StreamState {
        let state = self.it.state(&self.stream).await.expect("an answer");
        state.expect("there is a stream")
    }

    /// Held, waiting and dead messages of the group.
    async fn counts(&self) -> (u64, u64, u64) {
        let state = self.state().await;
        let group = state.groups.iter().find(|it| *it.group == *self.group);
        let group = group.expect("there is a group");
        (group.held, group.waiting, group.dead)
    }
}

fn join(consumer: &str) -> Join {
    Join {
        consumer: consumer.into(),
        lease_ms: HOUR,
        start: Start::Oldest,
        resume: None,
        keep_ms: HOUR,
    }
}

fn message(event: &str) -> RawMessage {
    let envelope = Envelope {
        id: event.into(),
        ..Envelope::default()
    };
    RawMessage {
        envelope,
        body: Bytes::copy_from_slice(event.as_bytes()),
    }
}

fn outgoing(event: &str, delay_ms: u64) -> Outgoing {
    Outgoing {
        message: message(event),
        delay_ms,
    }
}

fn stored(published: Published) -> Position {
    match published {
        Published::Stored(position) => position,
        other => panic!("not stored: {other:?}"),
    }
}

/// The names of events.
fn names(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(name).collect()
}

fn name(delivery: &Delivery) -> String {
    let message = delivery.message.as_ref().expect("it is in the stream");
    assert_eq!(message.body, message.envelope.id.as_bytes());
    message.envelope.id.to_string()
}

fn retry(after_ms: u64, reason: &str) -> Action {
    Action::Retry {
        after_ms,
        reason: reason.into(),
    }
}

fn dead(reason: &str) -> Action {
    Action::Dead {
        reason: reason.into(),
    }
}

fn give_back(after_ms: u64) -> Action {
    Action::GiveBack { after_ms }
}

//! The retention of one stream: pure.

use super::{Stream, group::Group};
use crate::stream::{
    message::Position,
    steps::{Retention, Trimmed},
};

/// The end of what a retention removes.
fn end_of(retention: &Retention, it: &Stream, now: u64) -> Position {
    let mut end = Position::START;
    if let Some(age) = retention.max_age_ms {
        end = end.max(Position::new((now / 1000).saturating_sub(age), 0));
    }
    if let Some(length) = retention.max_length {
        end = end.max(it.log.start_of_last(length));
    }
    if let Some(dead_after) = retention.settled {
        let groups = it.groups.values();
        let waited_for = groups.filter(|it| it.is_waited_for(dead_after, now));
        let settled = waited_for.map(Group::bookmark).min();
        end = end.max(settled.map_or(Position::START, Position::next));
    }
    end
}

pub(super) fn trim(retention: &Retention, it: &mut Stream, now: u64) -> Trimmed {
    let end = end_of(retention, it, now);
    let mut undelivered = 0;
    for group in it.groups.values_mut() {
        let left = it.log.from(group.cursor.next());
        let skipped = left.take_while(|(at, _)| *at < end).count() as u64;
        group.skipped += skipped;
        group.cursor = group.cursor.max(end.before());
        undelivered = undelivered.max(skipped);
    }
    Trimmed {
        removed: it.log.remove_before(end),
        undelivered,
        length: it.log.len(),
    }
}

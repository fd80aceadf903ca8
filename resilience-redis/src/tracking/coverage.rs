//! Whether every connection over which changes are reported is in use. Pure.

use std::collections::HashMap;

/// A connection that is remade whenever it is lost, or another condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Member(u64);

/// The members, and which of them are in use.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    members: HashMap<Member, Uses>,
    added: u64,
}

/// The connections of one member, by number: each is higher than those before it.
#[derive(Debug, Default)]
struct Uses {
    begun: u64,
    ended: u64,
}

impl Coverage {
    /// Adds a member that is not in use yet.
    pub(super) fn add(&mut self) -> Member {
        self.added += 1;
        let member = Member(self.added);
        self.members.insert(member, Uses::default());
        member
    }

    #[cfg(any(feature = "cluster", test))]
    pub(super) fn remove(&mut self, member: Member) {
        self.members.remove(&member);
    }

    /// Connection `number` of a member is in use, unless it has ended already.
    pub(super) fn began(&mut self, member: Member, number: u64) {
        if let Some(uses) = self.members.get_mut(&member) {
            uses.begun = uses.begun.max(number);
        }
    }

    /// Connection `number` of a member is not in use any longer, nor are those before it.
    pub(super) fn ended(&mut self, member: Member, number: u64) {
        if let Some(uses) = self.members.get_mut(&member) {
            uses.ended = uses.ended.max(number);
        }
    }

    /// Whether a member is in use.
    #[cfg(any(feature = "cluster", test))]
    pub(super) fn is_live(&self, member: Member) -> bool {
        self.members.get(&member).is_some_and(Uses::are_live)
    }

    /// Whether there are members, and all are in use.
    pub(super) fn is_whole(&self) -> bool {
        !self.members.is_empty() && self.members.values().all(Uses::are_live)
    }
}

impl Uses {
    fn are_live(&self) -> bool {
        self.begun > self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_while_every_member_is_in_use() {
        let mut coverage = Coverage::default();
        assert!(!coverage.is_whole(), "there is no member");
        let (one, other) = (coverage.add(), coverage.add());
        coverage.began(one, 1);
        assert!(!coverage.is_whole() && coverage.is_live(one));
        coverage.began(other, 1);
        assert!(coverage.is_whole());
        coverage.ended(one, 1);
        assert!(!coverage.is_whole());
        coverage.remove(one);
        assert!(coverage.is_whole());
        coverage.began(one, 2);
        assert!(!coverage.is_live(one), "it was removed");
        let third = coverage.add();
        assert!(!coverage.is_whole() && third != one);
    }

    #[test]
    fn the_end_of_a_connection_counts_before_its_beginning_and_not_for_its_successor() {
        let mut coverage = Coverage::default();
        let member = coverage.add();
        coverage.ended(member, 1);
        coverage.began(member, 1);
        assert!(!coverage.is_live(member));
        coverage.began(member, 2);
        coverage.ended(member, 1);
        assert!(coverage.is_live(member));
        coverage.ended(member, 2);
        coverage.ended(member, 2);
        assert!(!coverage.is_live(member));
    }
}

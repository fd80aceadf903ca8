//! The semaphore against a model.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// What can happen at a semaphore, each as one step: between releasing a permit and handing it over
/// any other step can come.
#[derive(Clone, Copy, Debug)]
enum Step {
    Enter,
    EnterOrQueue,
    Leave,
    HandOver,
    Cancel(usize),
    Resize(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Enter),
        6 => Just(Step::EnterOrQueue),
        4 => Just(Step::Leave),
        4 => Just(Step::HandOver),
        2 => (0usize..8).prop_map(Step::Cancel),
        1 => (1usize..5).prop_map(Step::Resize),
    ];
    proptest::collection::vec(step, 0..400)
}

/// The plainest implementation.
#[derive(Debug)]
struct Model {
    limit: usize,
    longest_queue: usize,
    in_flight: usize,
    waiting: VecDeque<Ticket>,
    passed: u32,
}

impl Model {
    fn enters(&mut self) -> bool {
        let passes = self.waiting.is_empty() && self.in_flight < self.limit;
        if passes {
            self.pass();
        }
        passes
    }

    fn pass(&mut self) {
        self.in_flight += 1;
        self.passed += 1;
    }

    fn next(&mut self) -> Option<Ticket> {
        if self.in_flight >= self.limit {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.pass();
        Some(next)
    }
}

proptest! {
    #[test]
    fn the_gate_does_what_the_model_does(
        steps in steps(),
        limit in 1usize..4,
        longest_queue in 0usize..6,
    ) {
        // A waiter is woken by its own ticket.
        let semaphore = Semaphore::<Ticket>::new(limit, longest_queue);
        let waiting = VecDeque::new();
        let mut model = Model { limit, longest_queue, in_flight: 0, waiting, passed: 0 };
        for step in steps {
            take(step, &semaphore, &mut model)?;
            let load = semaphore.load();
            prop_assert_eq!(
                (load.in_flight, load.waiting, load.limit, load.passed),
                (model.in_flight, model.waiting.len(), model.limit, model.passed)
            );
        }
        empty(&semaphore, &mut model)?;
    }
}

fn take(step: Step, semaphore: &Semaphore<Ticket>, model: &mut Model) -> Result<(), TestCaseError> {
    match step {
        Step::Enter => {
            let before = model.passed;
            let expected = model.enters().then_some(before);
            prop_assert_eq!(semaphore.enter(), expected);
        }
        Step::EnterOrQueue => match semaphore.enter_or_queue() {
            Entry::Passed => prop_assert!(model.enters()),
            Entry::Full => {
                prop_assert!(!model.enters());
                prop_assert_eq!(model.waiting.len(), model.longest_queue);
            }
            Entry::Queued(ticket) => {
                prop_assert!(!model.enters());
                prop_assert!(model.waiting.len() < model.longest_queue);
                model.waiting.push_back(ticket);
                prop_assert!(semaphore.still_waits(ticket, |wake| *wake = Some(ticket)));
            }
        },
        Step::Leave if model.in_flight > 0 => {
            model.in_flight -= 1;
            prop_assert_eq!(semaphore.leave(), !model.waiting.is_empty());
        }
        Step::Leave => {}
        Step::HandOver => {
            let next = model.next();
            prop_assert_eq!(
                semaphore.hand_over(),
                next.map(Some),
                "the oldest, and them alone"
            );
            if let Some(ticket) = next {
                prop_assert!(!semaphore.still_waits(ticket, |_| ()));
                prop_assert!(
                    !semaphore.cancel(ticket),
                    "has a place, which is theirs to give back"
                );
            }
        }
        Step::Cancel(nth) => {
            if let Some(ticket) = model.waiting.remove(nth) {
                prop_assert!(semaphore.cancel(ticket));
                prop_assert!(!semaphore.cancel(ticket), "and not twice");
            }
        }
        Step::Resize(limit) => {
            semaphore.resize(limit);
            model.limit = limit;
        }
    }
    Ok(())
}

/// All calls that wait get their turn, in order, and all permits are free in the end.
fn empty(semaphore: &Semaphore<Ticket>, model: &mut Model) -> Result<(), TestCaseError> {
    while model.in_flight > 0 || !model.waiting.is_empty() {
        while let Some(next) = model.next() {
            prop_assert_eq!(semaphore.hand_over(), Some(Some(next)));
        }
        prop_assert_eq!(semaphore.hand_over(), None);
        model.in_flight -= 1;
        let _ = semaphore.leave();
    }
    let load = semaphore.load();
    prop_assert_eq!((load.in_flight, load.waiting), (0, 0));
    Ok(())
}

#[test]
fn the_count_of_passed_calls_runs_over_into_nothing() {
    let semaphore = Semaphore::<()>::new(1, 0);
    semaphore.hot.word.store(u64::MAX << (2 * BITS), Relaxed);
    assert_eq!(semaphore.enter(), Some((1 << 24) - 1));
    assert!(!semaphore.leave());
    assert_eq!(semaphore.load().passed, 0);
    assert_eq!(semaphore.load().in_flight, 0);
    let semaphore = Semaphore::<()>::new(1, 1);
    semaphore
        .hot
        .word
        .store(u64::MAX << (2 * BITS) | 1, Relaxed);
    assert!(matches!(semaphore.enter_or_queue(), Entry::Queued(_)));
    assert!(semaphore.leave());
    assert_eq!(semaphore.hand_over(), Some(None));
    assert_eq!(semaphore.load().in_flight, 1);
    assert_eq!(semaphore.load().waiting, 0);
    assert_eq!(semaphore.load().passed, 0);
}

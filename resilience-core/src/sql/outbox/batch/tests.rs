use proptest::prelude::*;

use super::*;
use crate::sql::outbox::row::FORMAT;
use crate::stream::Position;

fn row(sequence: i64, attempts: i32) -> StoredRow {
    StoredRow {
        sequence,
        format: FORMAT,
        id: format!("id-{sequence}"),
        stream: "orders".to_owned(),
        key: Some(format!("key-{sequence}")),
        envelope: "{}".to_owned(),
        body: vec![1],
        attempts,
        created_ms: 1,
    }
}

fn batch(rows: Vec<StoredRow>) -> Batch {
    let begun = Begun {
        sequences: rows.iter().map(|row| row.sequence).collect(),
        producer: "p".to_owned(),
        first: 11,
    };
    Batch::new(&begun, rows, 1_000)
}

/// The numbers of a run.
fn numbers(run: &Run) -> Vec<u64> {
    let first = run.publish.sequence.as_ref().unwrap().first;
    (first..first + run.publish.messages.len() as u64).collect()
}

fn stored(run: &Run) -> Result<Vec<Published>, StoreError> {
    Ok(vec![
        Published::Stored(Position::START);
        run.publish.messages.len()
    ])
}

fn refused() -> Result<Vec<Published>, StoreError> {
    Err(StoreError::new("too bulky", false))
}

#[test]
fn rows_are_sent_together_and_are_stored_when_the_broker_says_so() {
    let mut batch = batch(vec![row(3, 0), row(5, 0), row(9, 0)]);
    let run = batch.next().unwrap();
    assert_eq!(numbers(&run), [11, 12, 13]);
    assert_eq!(batch.stored(), [0; 0]);
    assert_eq!(batch.answered(&run, &stored(&run)), Then::GoOn);
    assert!(batch.next().is_none());
    assert_eq!(batch.stored(), [3, 5, 9]);
}

#[test]
fn an_answer_that_is_lost_sends_the_same_rows_with_the_same_numbers() {
    let mut batch = batch(vec![row(3, 0), row(5, 0)]);
    let run = batch.next().unwrap();
    for answer in [Err(StoreError::timed_out()), Ok(vec![Published::Duplicate])] {
        assert_eq!(batch.answered(&run, &answer), Then::Pause);
        assert_eq!(batch.next().unwrap().publish, run.publish);
    }
    let duplicates = Ok(vec![Published::Duplicate; 2]);
    assert_eq!(batch.answered(&run, &duplicates), Then::GoOn);
    assert_eq!(batch.stored(), [3, 5]);
}

#[test]
fn rows_that_are_gone_and_other_streams_end_a_run_and_no_number_moves() {
    let begun = Begun {
        sequences: vec![1, 2, 3, 4],
        producer: "p".to_owned(),
        first: 1,
    };
    let mut other = row(4, 0);
    other.stream = "refunds".to_owned();
    let mut batch = Batch::new(&begun, vec![row(1, 0), row(3, 0), other], 1);
    let mut sent = Vec::new();
    while let Some(run) = batch.next() {
        sent.push((run.stream.to_string(), numbers(&run)));
        batch.answered(&run, &stored(&run));
    }
    let orders = "orders".to_owned();
    assert_eq!(
        sent,
        [
            (orders.clone(), vec![1]),
            (orders, vec![3]),
            ("refunds".to_owned(), vec![4])
        ]
    );
}

#[test]
fn a_row_that_cannot_be_a_message_is_not_sent_and_stops_nothing() {
    let mut unreadable = row(5, 0);
    unreadable.envelope = "[".to_owned();
    let mut large = row(7, 0);
    large.body = vec![0; validate::MAX_MESSAGE + 1];
    let mut batch = batch(vec![row(3, 0), unreadable, large, row(9, 0)]);
    let mut sent = Vec::new();
    while let Some(run) = batch.next() {
        sent.extend(numbers(&run));
        batch.answered(&run, &stored(&run));
    }
    assert_eq!(sent, [11, 14]);
    assert_eq!(batch.stored(), [3, 9]);
    assert_eq!(batch.invalid().map(|it| it.0).collect::<Vec<_>>(), [5, 7]);
}

#[test]
fn a_row_that_was_refused_before_is_sent_alone_and_judged_at_once() {
    let mut batch = batch(vec![row(3, 0), row(5, 2), row(9, 0)]);
    let run = batch.next().unwrap();
    assert_eq!(numbers(&run), [11]);
    batch.answered(&run, &stored(&run));
    let run = batch.next().unwrap();
    assert_eq!(numbers(&run), [12]);
    let Then::Refused(refused) = batch.answered(&run, &refused()) else {
        panic!("judged")
    };
    assert_eq!((refused.sequence, refused.attempts), (5, 2));
    assert_eq!(batch.stored(), [3]);
}

#[test]
fn a_row_that_may_have_been_stored_is_not_given_up_at_the_first_refusal() {
    let mut batch = batch(vec![row(3, 1)]);
    let run = batch.next().unwrap();
    assert_eq!(
        batch.answered(&run, &Err(StoreError::timed_out())),
        Then::Pause
    );
    for _ in 1..UNSURE_PATIENCE {
        assert_eq!(batch.answered(&run, &refused()), Then::Pause);
    }
    let Then::Refused(refused) = batch.answered(&run, &refused()) else {
        panic!("given up")
    };
    assert!(
        refused.reason.contains("may have published"),
        "{}",
        refused.reason
    );
}

proptest! {
    /// A broker that refuses some rows, and loses some answers: each row keeps its number, numbers rise, what is in the
    /// broker is what is said to be stored, once, and exactly the first row that it refuses is found.
    #[test]
    fn the_first_row_that_is_refused_is_found_and_all_before_it_are_stored_once(
        bad in proptest::collection::vec(any::<bool>(), 1..40),
        lost in proptest::collection::vec(any::<bool>(), 0..200),
    ) {
        let rows: Vec<_> = (0..bad.len()).map(|at| row(at as i64 * 2, 0)).collect();
        let mut batch = batch(rows);
        let (mut broker, mut lost) = (Vec::new(), lost.into_iter());
        let mut refusal = None;
        let mut steps = 0;
        while let Some(run) = batch.next() {
            steps += 1;
            prop_assert!(steps < 1_000);
            let numbers = numbers(&run);
            for (number, outgoing) in numbers.iter().zip(&run.publish.messages) {
                let id = format!("id-{}", (number - 11) * 2);
                prop_assert_eq!(&*outgoing.message.envelope.id, &id);
            }
            let taken = !numbers.iter().any(|number| bad[(number - 11) as usize]);
            if taken {
                let last = broker.last().copied().unwrap_or(0);
                broker.extend(numbers.into_iter().filter(|&number| number > last));
            }
            let answer = match (lost.next(), taken) {
                (Some(true), _) => Err(StoreError::timed_out()),
                (_, true) => stored(&run),
                (_, false) => refused(),
            };
            if let Then::Refused(refused) = batch.answered(&run, &answer) {
                refusal = Some(refused.sequence);
                break;
            }
        }
        let first_bad = bad.iter().position(|it| *it);
        prop_assert_eq!(refusal, first_bad.map(|at| at as i64 * 2));
        let expected: Vec<_> = (0..first_bad.unwrap_or(bad.len())).map(|at| at as i64 * 2).collect();
        prop_assert_eq!(batch.stored(), expected.clone());
        prop_assert_eq!(broker.len(), expected.len());
    }
}

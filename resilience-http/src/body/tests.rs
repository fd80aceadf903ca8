use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use resilience_core::{
    Reason, Verdict,
    completion::{Completion, Guard},
    deadline::{self, Deadline},
};
use tokio::time::{Instant, Sleep};

use super::*;

/// The verdicts that a layer received, and whether its permit was released.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<(Vec<Verdict>, bool)>>);

struct Told(Log);

impl Guard for Told {
    fn settle(&mut self, verdict: Verdict) {
        self.0.0.lock().unwrap().0.push(verdict);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().1 = true;
    }
}

impl Log {
    fn guard(&self) -> Told {
        Told(self.clone())
    }

    /// The first verdict, the one that counts.
    fn verdict(&self) -> Option<Verdict> {
        self.0.lock().unwrap().0.first().copied()
    }

    fn given_back(&self) -> bool {
        self.0.lock().unwrap().1
    }
}

/// A body that follows a script: data, an error, or a pause.
struct Script(VecDeque<Step>, Option<Pin<Box<Sleep>>>);

enum Step {
    Data(&'static str),
    Pause(Duration),
    Hang,
    Reset,
    Panic,
}

fn script(steps: impl IntoIterator<Item = Step>) -> Script {
    Script(steps.into_iter().collect(), None)
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            if let Some(pause) = &mut self.1 {
                std::task::ready!(pause.as_mut().poll(cx));
                self.1 = None;
            }
            return match self.0.pop_front() {
                None => Poll::Ready(None),
                Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data.into())))),
                Some(Step::Reset) => Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
                Some(Step::Panic) => panic!("a broken decoder"),
                Some(Step::Pause(time)) => {
                    self.1 = Some(Box::pin(tokio::time::sleep(time)));
                    continue;
                }
                Some(Step::Hang) => {
                    self.0.push_front(Step::Hang);
                    Poll::Pending
                }
            };
        }
    }
}

const MS: Duration = Duration::from_millis(1);

fn held<B: Body>(end: &OnBodyEnd, body: B, verdict: Verdict) -> (Log, GuardedBody<B>) {
    let log = Log::default();
    let response = end.hold(Response::new(body), verdict, log.guard());
    (log, response.into_body())
}

fn success<B: Body>(body: B) -> (Log, GuardedBody<B>) {
    held(&OnBodyEnd::new().name("api"), body, Verdict::Success)
}

async fn read<B>(body: B) -> Result<Bytes, B::Error>
where
    B: Body,
{
    Ok(body.collect().await?.to_bytes())
}

#[tokio::test]
async fn a_whole_body_is_what_its_head_was() {
    for head in [Verdict::Success, Verdict::Ignored] {
        let body = script([Step::Data("he"), Step::Data("llo")]);
        let (log, body) = held(&OnBodyEnd::new(), body, head);
        assert_eq!((log.verdict(), log.given_back()), (None, false));
        assert_eq!(read(body).await.unwrap(), "hello");
        assert_eq!((log.verdict(), log.given_back()), (Some(head), true));
    }
}

#[tokio::test]
async fn the_permit_comes_back_with_the_last_frame_and_not_when_somebody_drops_the_body() {
    let (log, mut body) = success(Full::new(Bytes::from("hello")));
    body.frame().await.unwrap().unwrap();
    assert!(log.given_back(), "the body has said that this was all");
    assert_eq!(log.verdict(), Some(Verdict::Success));
    assert!(body.is_end_stream() && body.frame().await.is_none());
}

#[tokio::test]
async fn an_answer_without_a_body_is_over_at_once() {
    let (log, _body) = success(Empty::<Bytes>::new());
    assert_eq!(
        (log.verdict(), log.given_back()),
        (Some(Verdict::Success), true)
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_failure_whatever_its_head_said() {
    for head in [Verdict::Success, Verdict::Ignored] {
        let body = script([Step::Data("he"), Step::Reset, Step::Data("llo")]);
        let (log, mut body) = held(&OnBodyEnd::new(), body, head);
        body.frame().await.unwrap().unwrap();
        body.frame().await.unwrap().unwrap_err();
        assert_eq!(log.verdict(), Some(Verdict::transient()));
        assert!(log.given_back());
        assert!(body.frame().await.is_none(), "nothing comes after an error");
    }
}

#[tokio::test]
async fn a_failed_head_is_told_at_once_but_keeps_its_permit_while_the_server_sends() {
    let wait = Verdict::retry_after(Duration::from_secs(3));
    let body = script([Step::Data("sorry"), Step::Reset]);
    let (log, body) = held(&OnBodyEnd::new(), body, wait);
    assert_eq!((log.verdict(), log.given_back()), (Some(wait), false));
    drop(body);
    assert_eq!((log.verdict(), log.given_back()), (Some(wait), true));
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_that_comes_whole_is_a_success() {
    let steps = (0..100).flat_map(|_| [Step::Data("x"), Step::Pause(500 * MS)]);
    let (log, body) = success(script(steps));
    assert_eq!(read(body).await.unwrap().len(), 100);
    assert_eq!(log.verdict(), Some(Verdict::Success));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_hangs_ends_at_the_deadline_as_a_failure() {
    let start = Instant::now();
    let within = deadline::scope(Deadline::after(200 * MS), async {
        success(script([Step::Data("he"), Step::Hang]))
    });
    let (log, body) = within.await;
    // Read outside of the scope, on another task: the deadline still holds.
    let error = tokio::spawn(read(body)).await.unwrap().unwrap_err();
    assert!(start.elapsed() >= 200 * MS && start.elapsed() < 210 * MS);
    let rejected = rejected_in(error.as_ref()).unwrap();
    assert_eq!(rejected.reason(), Reason::TimedOut);
    assert_eq!(rejected.name(), "api");
    let io: &io::Error = error.downcast_ref().unwrap();
    assert_eq!(io.kind(), io::ErrorKind::TimedOut);
    assert_eq!(log.verdict(), Some(Verdict::transient()));
    assert!(log.given_back());
}

#[tokio::test(start_paused = true)]
async fn data_that_is_there_at_the_deadline_is_not_thrown_away() {
    let within = deadline::scope(Deadline::after(200 * MS), async {
        success(script([Step::Pause(200 * MS), Step::Data("in time")]))
    });
    let (log, body) = within.await;
    assert_eq!(read(body).await.unwrap(), "in time");
    assert_eq!(log.verdict(), Some(Verdict::Success));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_comes_too_late_is_cut_off_but_not_held_against_the_server() {
    let within = deadline::scope(Deadline::after(200 * MS), async {
        success(script([Step::Data("a"), Step::Data("b"), Step::Data("c")]))
    });
    let (log, mut body) = within.await;
    body.frame().await.unwrap().unwrap();
    tokio::time::advance(300 * MS).await;
    body.frame().await.unwrap().unwrap();
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(rejected_in(error.as_ref()).is_some());
    assert_eq!(log.verdict(), Some(Verdict::Success));
    assert!(log.given_back());
}

#[tokio::test(start_paused = true)]
async fn an_endless_body_that_never_waits_is_cut_off_too() {
    let within = deadline::scope(Deadline::after(200 * MS), async {
        success(script((0..1000).map(|_| Step::Data("x"))))
    });
    let (_, mut body) = within.await;
    let mut frames = 0;
    while body.frame().await.unwrap().is_ok() {
        tokio::time::advance(MS).await;
        frames += 1;
    }
    assert!((199..=201).contains(&frames), "{frames}");
}

/// Reads one frame, waits `patience` for the next, and drops the body.
async fn give_up_after(patience: Duration, end: &OnBodyEnd) -> Option<Verdict> {
    let (log, mut body) = held(
        end,
        script([Step::Data("he"), Step::Hang]),
        Verdict::Success,
    );
    body.frame().await.unwrap().unwrap();
    let waited = tokio::time::timeout(patience, body.frame()).await;
    assert!(waited.is_err());
    drop(body);
    assert!(log.given_back());
    log.verdict()
}

#[tokio::test(start_paused = true)]
async fn a_body_given_up_half_read_is_what_its_head_was_unless_it_had_stalled() {
    let end = OnBodyEnd::new();
    let at_once = give_up_after(999 * MS, &end).await;
    assert_eq!(at_once, Some(Verdict::Success));
    let stalled = give_up_after(1001 * MS, &end).await;
    assert_eq!(stalled, Some(Verdict::transient()));
    let patient = end.stalled_after(Duration::from_secs(5));
    let early = give_up_after(1001 * MS, &patient).await;
    assert_eq!(early, Some(Verdict::Success));
}

#[tokio::test(start_paused = true)]
async fn a_body_given_up_half_read_can_be_ignored_or_failed() {
    let ignored = OnBodyEnd::new().partial_read(PartialRead::Ignored);
    let verdict = give_up_after(Duration::from_secs(9), &ignored).await;
    assert_eq!(verdict, Some(Verdict::Ignored));
    let failed = OnBodyEnd::new().partial_read(PartialRead::Failed);
    assert_eq!(give_up_after(MS, &failed).await, Some(Verdict::transient()));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_holds_a_body_without_asking_for_more_is_not_held_against_the_server() {
    let (log, mut body) = success(script([Step::Data("he"), Step::Hang]));
    body.frame().await.unwrap().unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    drop(body);
    assert_eq!(log.verdict(), Some(Verdict::Success));
}

#[tokio::test(start_paused = true)]
async fn a_body_dropped_at_its_deadline_while_it_was_awaited_is_a_failure() {
    // Shorter than the bound, but up to the deadline.
    let (log, mut body) = deadline::scope(Deadline::after(200 * MS), async {
        success(script([Step::Hang]))
    })
    .await;
    assert!(waits_for_data(&mut body).await);
    tokio::time::advance(250 * MS).await;
    drop(body);
    assert_eq!(log.verdict(), Some(Verdict::transient()));
}

/// Polls the body once.
async fn waits_for_data(body: &mut GuardedBody<Script>) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx).is_pending())).await
}

#[tokio::test]
async fn a_body_that_panics_is_a_failure() {
    let (log, body) = success(script([Step::Data("he"), Step::Panic]));
    assert!(tokio::spawn(read(body)).await.is_err());
    assert_eq!(
        (log.verdict(), log.given_back()),
        (Some(Verdict::transient()), true)
    );
}

#[tokio::test]
async fn two_layers_both_hear_of_the_end() {
    let (inner, outer) = (Log::default(), Log::default());
    let end = OnBodyEnd::new();
    let response = Response::new(script([Step::Data("he"), Step::Reset]));
    let response = end.hold(response, Verdict::Success, inner.guard());
    let response = end.hold(response, Verdict::Ignored, outer.guard());
    read(response.into_body()).await.unwrap_err();
    for log in [inner, outer] {
        assert_eq!(
            (log.verdict(), log.given_back()),
            (Some(Verdict::transient()), true)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn while_a_body_hangs_it_is_polled_a_handful_of_times() {
    struct Counting(Arc<Mutex<u32>>);
    impl Body for Counting {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            *self.0.lock().unwrap() += 1;
            Poll::Pending
        }
    }
    let polls = Arc::default();
    let within = deadline::scope(Deadline::after(Duration::from_secs(5)), async {
        success(Counting(Arc::clone(&polls))).1
    });
    read(within.await).await.unwrap_err();
    assert!(*polls.lock().unwrap() <= 3);
}

#[tokio::test]
async fn size_and_trailers_pass_through() {
    let (_, body) = success(Full::new(Bytes::from("hello")));
    assert_eq!(body.size_hint().exact(), Some(5));
    let mut trailers = http::HeaderMap::new();
    trailers.insert("checksum", http::HeaderValue::from_static("1"));
    let whole =
        Full::<Bytes>::new(Bytes::from("hello")).with_trailers(std::future::ready(Some(Ok::<
            _,
            Infallible,
        >(
            trailers.clone(),
        ))));
    let (log, body) = success(whole);
    let read = body.collect().await.unwrap();
    assert_eq!(read.trailers(), Some(&trailers));
    assert_eq!(read.to_bytes(), "hello");
    assert_eq!(log.verdict(), Some(Verdict::Success));
}

#[cfg(feature = "client")]
mod reqwest_responses {
    use std::{fmt, future::ready};

    use reqwest::ResponseBuilderExt;
    use resilience_core::{Bulkhead, Error};
    use tower::{
        Layer, Service, ServiceExt,
        load::{Load, PendingRequests},
    };

    use super::*;

    fn answer(steps: impl IntoIterator<Item = Step>) -> reqwest::Response {
        let url = url::Url::parse("http://api.test/a?b=c").unwrap();
        let body = reqwest::Body::wrap(script(steps));
        let builder = Response::builder()
            .status(201)
            .version(http::Version::HTTP_2);
        let builder = builder.header("x-one", "1").extension(7u8).url(url);
        builder.body(body).unwrap().into()
    }

    #[tokio::test]
    async fn the_response_stays_what_it_was() {
        let (one, two) = (Log::default(), Log::default());
        let end = OnBodyEnd::new();
        let response = end.hold(answer([Step::Data("hello")]), Verdict::Success, one.guard());
        let response = end.hold(response, Verdict::Success, two.guard());
        assert_eq!(response.url().as_str(), "http://api.test/a?b=c");
        assert_eq!(response.status(), 201);
        assert_eq!(response.version(), http::Version::HTTP_2);
        assert_eq!(response.headers()["x-one"], "1");
        assert_eq!(response.extensions().get(), Some(&7u8));
        assert!(!one.given_back() && !two.given_back());
        assert_eq!(response.text().await.unwrap(), "hello");
        for log in [one, two] {
            assert_eq!(
                (log.verdict(), log.given_back()),
                (Some(Verdict::Success), true)
            );
        }
    }

    #[tokio::test]
    async fn the_length_is_known_still() {
        let url = url::Url::parse("http://api.test/").unwrap();
        let response = Response::builder().url(url).body("hello").unwrap();
        let response = reqwest::Response::from(response);
        let log = Log::default();
        let response = OnBodyEnd::new().hold(response, Verdict::Success, log.guard());
        assert_eq!(response.content_length(), Some(5));
    }

    /// An incomplete response under a number of layers: the reader's error, and the verdicts of the
    /// layers.
    async fn broken_under(layers: usize) -> (usize, Vec<Log>) {
        let logs: Vec<_> = (0..layers).map(|_| Log::default()).collect();
        let mut response = answer([Step::Data("he"), Step::Reset]);
        for log in &logs {
            response = OnBodyEnd::new().hold(response, Verdict::Success, log.guard());
        }
        let error = response.bytes().await.unwrap_err();
        (chain(&error).count(), logs)
    }

    #[tokio::test]
    async fn all_layers_hear_of_the_end_through_one_wrapping() {
        let (one, _) = broken_under(1).await;
        let (three, logs) = broken_under(3).await;
        assert_eq!(one, three, "no layer adds to the chain of errors");
        for log in logs {
            assert_eq!(
                (log.verdict(), log.given_back()),
                (Some(Verdict::transient()), true)
            );
        }
    }

    #[tokio::test]
    async fn a_guard_that_comes_after_the_end_is_settled_by_it() {
        let (one, two) = (Log::default(), Log::default());
        let end = OnBodyEnd::new();
        let response = end.hold(answer([Step::Reset]), Verdict::Success, one.guard());
        // A layer in between reads the body and replaces it by another.
        let url = response.url().clone();
        let (parts, body) = Response::<reqwest::Body>::from(response).into_parts();
        read(body).await.unwrap_err();
        let mut other = Response::builder().url(url).body("[]").unwrap();
        other.extensions_mut().extend(parts.extensions);
        let other = reqwest::Response::from(other);
        drop(end.hold(other, Verdict::Success, two.guard()));
        assert_eq!(
            (two.verdict(), two.given_back()),
            (Some(Verdict::transient()), true)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_reader_of_a_hanging_body_gets_a_timeout_with_the_rejection_inside() {
        let within = deadline::scope(Deadline::after(200 * MS), async {
            let log = Log::default();
            let response = answer([Step::Data("he"), Step::Hang]);
            let end = OnBodyEnd::new().name("api");
            (end.hold(response, Verdict::Success, log.guard()), log)
        });
        let (response, log) = within.await;
        let error = response.bytes().await.unwrap_err();
        assert!(error.is_timeout());
        let rejected = rejected_in(&error).unwrap();
        assert_eq!(
            (rejected.reason(), rejected.name()),
            (Reason::TimedOut, "api")
        );
        assert_eq!(log.verdict(), Some(Verdict::transient()));
    }

    /// The name of the layer, unless another one is set.
    #[tokio::test(start_paused = true)]
    async fn a_body_ends_at_its_deadline_under_the_name_of_the_layer() {
        for (end, name) in [
            (OnBodyEnd::new(), "places"),
            (OnBodyEnd::new().name("other"), "other"),
        ] {
            let bulkhead = Bulkhead::builder("places").build().unwrap();
            let layer = bulkhead.layer().complete_on(end);
            let inner =
                tower::service_fn(async |()| Ok::<_, Error<Infallible>>(answer([Step::Hang])));
            let call = layer.layer(inner).oneshot(());
            let response = deadline::scope(Deadline::after(200 * MS), call).await;
            let error = response.unwrap().bytes().await.unwrap_err();
            assert_eq!(rejected_in(&error).unwrap().name(), name);
            assert_eq!(bulkhead.snapshot().in_flight, 0);
        }
    }

    #[tokio::test]
    async fn a_balancer_counts_a_call_as_load_until_its_body_has_ended() {
        let load = |in_progress: &dyn fmt::Debug| format!("{in_progress:?}");
        let two = [Step::Data("he"), Step::Data("llo")];
        let mut steps = Some(two);
        let inner =
            tower::service_fn(move |()| ready(Ok::<_, Infallible>(answer(steps.take().unwrap()))));
        let mut endpoint = PendingRequests::new(inner, OnBodyEnd::new());
        let response = endpoint.call(()).await.unwrap();
        assert_eq!(load(&endpoint.load()), "Count(1)");
        assert_eq!(response.bytes().await.unwrap(), "hello");
        assert_eq!(load(&endpoint.load()), "Count(0)");

        let body = || script([Step::Data("hello"), Step::Reset]);
        let inner = tower::service_fn(|()| ready(Ok::<_, Infallible>(Response::new(body()))));
        let mut endpoint = PendingRequests::new(inner, OnBodyEnd::new());
        let response = endpoint.call(()).await.unwrap();
        assert_eq!(load(&endpoint.load()), "Count(1)");
        read(response.into_body()).await.unwrap_err();
        assert_eq!(load(&endpoint.load()), "Count(0)");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_any_guard_can_be_covered_by_the_deadline() {
        let within = deadline::scope(Deadline::after(200 * MS), async {
            OnBodyEnd::new().cover(answer([Step::Hang]))
        });
        let error = within.await.bytes().await.unwrap_err();
        assert!(error.is_timeout() && rejected_in(&error).is_some());
    }
}

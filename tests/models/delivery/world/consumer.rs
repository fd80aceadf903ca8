//! What a consumer does, and what becomes of its requests.

use resilience_core::stream::{Held, Settled};

use super::{Consumer, End, Hand, MAX_DELIVERIES, Mistake, Reply, Request, World};

impl World {
    pub(crate) fn read(&mut self, n: usize) {
        self.ask(n, Request::Read);
    }

    pub(crate) fn claim(&mut self, n: usize) {
        self.ask(n, Request::Claim);
    }

    pub(crate) fn extend(&mut self, n: usize) {
        self.ask_about(n, |hand| Some(Request::Extend(hand.position)));
    }

    pub(crate) fn begin(&mut self, n: usize) {
        self.ask_about(n, |hand| Some(Request::Begin(hand.position, hand.event)));
    }

    pub(crate) fn settle(&mut self, n: usize) {
        self.ask_about(n, |hand| {
            Some(Request::Settle(hand.position, hand.event, hand.end?))
        });
    }

    fn ask(&mut self, n: usize, request: Request) {
        self.consumers[n].waiting = Some((request, None));
    }

    fn ask_about(&mut self, n: usize, request: impl FnOnce(&Hand) -> Option<Request>) {
        if let Some(request) = self.consumers[n].hand.as_ref().and_then(request) {
            self.ask(n, request);
        }
    }

    /// The handler makes the effect; that of poison fails before.
    pub(crate) fn handle(&mut self, n: usize) {
        let Some(hand) = &mut self.consumers[n].hand else {
            return;
        };
        if self.poison == Some(hand.event) {
            return self.fail(n);
        }
        hand.end = hand.fence.map(End::Effect);
        *self.made.entry(hand.event).or_default() += 1;
    }

    /// The handler fails, without an effect.
    pub(crate) fn fail(&mut self, n: usize) {
        if let Some(hand) = &mut self.consumers[n].hand {
            hand.end = Some(End::Retry);
        }
    }

    /// The consumer shuts down, or pauses.
    pub(crate) fn give_back(&mut self, n: usize) {
        if let Some(hand) = &mut self.consumers[n].hand {
            hand.end = Some(End::GiveBack);
        }
    }

    /// The process dies; the one in its place has another name. Its requests may still be on their way.
    pub(crate) fn crash(&mut self, n: usize) {
        let name = self.new_name();
        let one = &mut self.consumers[n];
        let late = match one.waiting.take() {
            Some((request, None)) => Some((one.name.clone(), request)),
            _ => one.late.take(),
        };
        *one = Consumer {
            name,
            hand: None,
            waiting: None,
            late,
        };
    }

    /// Whether the consumer sends what it waits for again. Reads and claims are not repeated: what they may have delivered is claimed
    /// when its lease ends.
    pub(crate) fn is_repeated(&self, n: usize) -> bool {
        let waiting = self.consumers[n].waiting.as_ref();
        !matches!(waiting, None | Some((Request::Read | Request::Claim, _)))
    }

    /// The answer is lost, or the request is late: it is sent again as it is.
    pub(crate) fn send_again(&mut self, n: usize) {
        let one = &mut self.consumers[n];
        if let Some((request, answer)) = &mut one.waiting
            && answer.take().is_none()
        {
            one.late = Some((one.name.clone(), request.clone()));
        }
    }

    /// The answer is lost, or the request is late: the consumer goes on without an answer.
    pub(crate) fn give_up(&mut self, n: usize) {
        self.send_again(n);
        self.consumers[n].waiting = None;
    }

    pub(crate) fn serve(&mut self, n: usize, mistake: Mistake) {
        let one = &self.consumers[n];
        if let Some((request, _)) = one.waiting.clone() {
            let reply = self.step(&one.name.clone(), &request, mistake);
            if let Some((_, answer)) = &mut self.consumers[n].waiting {
                *answer = Some(reply);
            }
        }
    }

    pub(crate) fn serve_late(&mut self, n: usize, mistake: Mistake) {
        if let Some((name, request)) = self.consumers[n].late.take() {
            self.step(&name, &request, mistake);
        }
    }

    pub(crate) fn deliver(&mut self, n: usize, mistake: Mistake) {
        let Some((_, Some(reply))) = self.consumers[n].waiting.take() else {
            return;
        };
        let one = &mut self.consumers[n];
        if let Reply::Delivered(delivery) = reply {
            one.hand = delivery.map(|(position, event, deliveries)| Hand {
                position,
                event,
                deliveries,
                fence: None,
                end: is_spent(deliveries, mistake).then_some(End::Dead),
            });
            return;
        }
        let Some(hand) = &mut one.hand else {
            return;
        };
        match reply {
            Reply::Run(fence) => hand.fence = Some(fence),
            Reply::Done => hand.end = Some(End::Ack),
            Reply::Busy => hand.end = Some(End::GiveBack),
            Reply::Held(Held::Held) => {}
            Reply::Held(_) | Reply::Settled(_) | Reply::Delivered(_) => one.hand = None,
        }
    }
}

/// As `Rules::is_spent` of the consumer.
fn is_spent(deliveries: u32, mistake: Mistake) -> bool {
    deliveries > MAX_DELIVERIES && mistake != Mistake::RetryForever
}

/// Whether a settlement changed something.
pub(super) fn is_done(reply: &Reply) -> bool {
    *reply == Reply::Settled(Settled::Done)
}

//! A store that stops answering and goes on later, as a server does that was stopped: what was sent
//! meanwhile is done when it goes on, also where the sender has given up.

use tokio::sync::watch;

use super::{around::Around, *};

#[derive(Clone, Debug)]
pub(super) struct Freezing {
    pub(super) inner: InProcessBreakers,
    frozen: watch::Sender<bool>,
}

impl Freezing {
    pub(super) fn new() -> Self {
        Self {
            inner: InProcessBreakers::new(),
            frozen: watch::Sender::new(false),
        }
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

async fn goes_on(mut frozen: watch::Receiver<bool>) {
    let _ = frozen.wait_for(|frozen| !frozen).await;
}

impl Around for Freezing {
    fn inner(&self) -> &InProcessBreakers {
        &self.inner
    }

    fn send<'a, T, F>(
        &'a self,
        step: impl FnOnce(InProcessBreakers) -> F + Send + 'static,
    ) -> StoreFuture<'a, T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (inner, frozen) = (self.inner.clone(), self.frozen.subscribe());
        let step = tokio::spawn(async move {
            goes_on(frozen).await;
            step(inner).await
        });
        Box::pin(async move { step.await.expect("it does not panic") })
    }

    fn subscription(&self, name: &str) -> Subscription<Arc<BreakerView>> {
        let (heard, told) = (self.inner.subscribe(name), watch::Sender::new(Pushed::None));
        let subscription = Subscription::new(told.subscribe());
        tokio::spawn(forward(heard, told, self.frozen.subscribe()));
        subscription
    }
}

async fn forward(
    mut from: Subscription<Arc<BreakerView>>,
    to: watch::Sender<Pushed<Arc<BreakerView>>>,
    frozen: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            push = from.next() => {
                goes_on(frozen.clone()).await;
                to.send_replace(push);
            }
            () = to.closed() => return,
        }
    }
}

//! A store that stops answering and goes on later, as a server does that was stopped: what was sent
//! meanwhile is done when it goes on, also where the sender has given up.

use tokio::sync::watch;

use super::*;

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

    fn later<'a, T, F>(
        &self,
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
}

async fn goes_on(mut frozen: watch::Receiver<bool>) {
    let _ = frozen.wait_for(|frozen| !frozen).await;
}

impl BreakerStore for Freezing {
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> StoreFuture<'a, BreakerView> {
        let (name, report) = (name.to_owned(), report.clone());
        self.later(move |store| async move { store.report(&name, &report).await })
    }
    fn change<'a>(
        &'a self,
        name: &'a str,
        change: &'a Change,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        let (name, change) = (name.to_owned(), change.clone());
        self.later(move |store| async move { store.change(&name, &change).await })
    }
    fn restore<'a>(
        &'a self,
        name: &'a str,
        known: &'a BreakerView,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        let (name, known) = (name.to_owned(), known.clone());
        self.later(move |store| async move { store.restore(&name, &known).await })
    }
    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> StoreFuture<'a, (LeaseAnswer, BreakerView)> {
        let (name, lease) = (name.to_owned(), Arc::clone(lease));
        self.later(move |store| async move { store.lease(&name, &lease, budget, lease_ms).await })
    }
    fn settle<'a>(
        &'a self,
        name: &'a str,
        lease: &'a str,
        epoch: u64,
        success: Option<bool>,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        let (name, lease) = (name.to_owned(), lease.to_owned());
        self.later(move |store| async move { store.settle(&name, &lease, epoch, success).await })
    }
    fn set_override<'a>(
        &'a self,
        name: &'a str,
        active_override: Option<FleetOverride>,
        by: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        let (name, by) = (name.to_owned(), by.to_owned());
        self.later(
            move |store| async move { store.set_override(&name, active_override, &by).await },
        )
    }
    fn reset<'a>(
        &'a self,
        name: &'a str,
        by: &'a str,
        cause: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        let (name, by, cause) = (name.to_owned(), by.to_owned(), cause.to_owned());
        self.later(move |store| async move { store.reset(&name, &by, &cause).await })
    }
    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerView> {
        let name = name.to_owned();
        self.later(move |store| async move { store.view(&name).await })
    }
    fn subscribe(&self, name: &str) -> Subscription<Arc<BreakerView>> {
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

//! The other team's catalog, with its moods.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::SeqCst},
    },
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
    routing::get,
};
use tokio::{sync::oneshot, time::sleep};

use super::{BoxError, Item, MISSING, SHORT, ms, serve};

/// A server on loopback.
pub(super) struct Catalog {
    pub(super) address: SocketAddr,
    state: Arc<CatalogState>,
    /// It ends with this.
    _stop: oneshot::Sender<()>,
}

#[derive(Default)]
struct CatalogState {
    mood: AtomicU8,
    revision: AtomicU64,
    requests: AtomicU64,
}

#[derive(Clone, Copy)]
pub(super) enum Mood {
    Well,
    Hanging,
    Failing,
}

impl Catalog {
    pub(super) async fn start() -> Result<Self, BoxError> {
        let state = Arc::new(CatalogState::default());
        let app = Router::new()
            .route("/items/{id}", get(catalog_item))
            .with_state(Arc::clone(&state));
        let (stop, stopped) = oneshot::channel();
        let (address, _) = serve(app, stopped).await?;
        Ok(Self {
            address,
            state,
            _stop: stop,
        })
    }

    pub(super) fn feel(&self, mood: Mood) {
        self.state.mood.store(mood as u8, SeqCst);
    }

    /// Changes all items.
    pub(super) fn revise(&self) {
        self.state.revision.fetch_add(1, SeqCst);
    }

    /// Requests since this was last asked.
    pub(super) fn take_requests(&self) -> u64 {
        self.state.requests.swap(0, SeqCst)
    }
}

async fn catalog_item(
    State(state): State<Arc<CatalogState>>,
    Path(id): Path<u64>,
) -> Result<impl IntoResponse, StatusCode> {
    state.requests.fetch_add(1, SeqCst);
    match state.mood.load(SeqCst) {
        hanging if hanging == Mood::Hanging as u8 => std::future::pending().await,
        failing if failing == Mood::Failing as u8 => Err(StatusCode::SERVICE_UNAVAILABLE),
        _ if id == MISSING => Err(StatusCode::NOT_FOUND),
        _ => {
            sleep(ms(20)).await;
            let revision = state.revision.load(SeqCst);
            let fresh = if id == SHORT {
                "max-age=1"
            } else {
                "max-age=60"
            };
            Ok(([("cache-control", fresh)], Json(Item { id, revision })))
        }
    }
}

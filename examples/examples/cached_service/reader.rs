//! Who reads from the service.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, sleep};

use super::{BoxError, Item, PATIENCE, ms};

/// A reader of the service.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) http: reqwest::Client,
    pub(super) instances: [SocketAddr; 2],
}

/// What it was told.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) cache_status: String,
    pub(super) revision: Option<u64>,
    pub(super) took: Duration,
}

impl Answer {
    pub(super) fn is_stale(&self) -> bool {
        self.cache_status.contains("stale")
    }
}

impl Reader {
    pub(super) async fn get(&self, instance: usize, id: u64) -> Result<Answer, BoxError> {
        let start = Instant::now();
        let url = format!("http://{}/items/{id}", self.instances[instance]);
        let response = self.http.get(url).send().await?;
        let cache_status = response.headers().get("cache-status");
        let cache_status = cache_status.and_then(|value| value.to_str().ok());
        Ok(Answer {
            status: response.status().as_u16(),
            cache_status: cache_status.unwrap_or_default().to_owned(),
            took: start.elapsed(),
            revision: response.json::<Item>().await.ok().map(|item| item.revision),
        })
    }

    /// Asks the first instance until an answer is as it should be.
    pub(super) async fn until(
        &self,
        id: u64,
        is: impl Fn(&Answer) -> bool,
    ) -> Result<Answer, BoxError> {
        let start = Instant::now();
        loop {
            let answer = self.get(0, id).await?;
            if is(&answer) {
                return Ok(answer);
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("not what was waited for: {answer:?}").into());
            }
            sleep(ms(20)).await;
        }
    }
}

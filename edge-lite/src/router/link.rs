//! What is known of the tail between requests, so that one that is away costs no request a timeout: a lost tail is
//! looked for in the background, less and less often.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::client::Client;
use crate::config::ClientConfig;
use crate::error::Error;

/// Whether a client may be used; checked for one that was not there at the start.
pub(super) type Fits = Arc<dyn Fn(&Client) -> Result<(), Error> + Send + Sync>;

/// How to find a tail.
#[derive(Clone)]
pub(super) struct Search {
    /// Where to connect to where there is no client yet, or where the tail has changed its model.
    pub(super) address: Option<(String, ClientConfig)>,
    pub(super) fits: Fits,
    /// Between tries; doubles with each.
    pub(super) min_wait: Duration,
    /// The longest wait.
    pub(super) max_wait: Duration,
    /// For one try with a client that exists.
    pub(super) patience: Duration,
}

/// The tail as it was last seen.
#[derive(Clone)]
enum Seen {
    Here(Client),
    Away(Option<Client>),
    /// None is asked any more; of a client whose layers are all here, its reports still are.
    Never(Option<Client>),
}

/// The one tail of a router. Clones share it; with the last one the search ends.
#[derive(Clone)]
pub(super) struct TailLink {
    seen: Arc<watch::Sender<Seen>>,
    search: Option<Arc<Search>>,
}

impl TailLink {
    /// None, ever.
    pub(super) fn none() -> Self {
        Self {
            seen: Arc::new(watch::Sender::new(Seen::Never(None))),
            search: None,
        }
    }

    /// None that would answer; `client` has all layers here, and reports.
    pub(super) fn none_but(client: Client) -> Self {
        Self {
            seen: Arc::new(watch::Sender::new(Seen::Never(Some(client)))),
            search: None,
        }
    }

    /// One that has just answered.
    pub(super) fn here(client: Client, search: Search) -> Self {
        Self {
            seen: Arc::new(watch::Sender::new(Seen::Here(client))),
            search: Some(Arc::new(search)),
        }
    }

    /// One that has not answered yet, and is looked for from now on.
    pub(super) fn away(search: Search) -> Self {
        let link = Self {
            seen: Arc::new(watch::Sender::new(Seen::Away(None))),
            search: Some(Arc::new(search)),
        };
        link.look_for(None);
        link
    }

    /// The client, where the tail is there.
    pub(super) fn client(&self) -> Option<Client> {
        match &*self.seen.borrow() {
            Seen::Here(client) => Some(client.clone()),
            _ => None,
        }
    }

    /// The client, wherever the tail is.
    pub(super) fn last_client(&self) -> Option<Client> {
        match &*self.seen.borrow() {
            Seen::Here(client) | Seen::Away(Some(client)) | Seen::Never(Some(client)) => {
                Some(client.clone())
            }
            _ => None,
        }
    }

    /// Whether it answered when it was last asked.
    pub(super) fn is_here(&self) -> bool {
        matches!(&*self.seen.borrow(), Seen::Here(_))
    }

    /// Returns when it answers.
    pub(super) async fn wait(&self) {
        let mut seen = self.seen.subscribe();
        // No error: a sender is here.
        let _ = seen.wait_for(|seen| matches!(seen, Seen::Here(_))).await;
    }

    /// Whether there may ever be one.
    pub(super) fn is_named(&self) -> bool {
        !matches!(&*self.seen.borrow(), Seen::Never(_))
    }

    /// It does not answer. The first to say so starts the search.
    pub(super) fn lost(&self, client: &Client) {
        let was_here = self.seen.send_if_modified(|seen| {
            let is_here = matches!(seen, Seen::Here(_));
            if is_here {
                *seen = Seen::Away(Some(client.clone()));
            }
            is_here
        });
        if was_here {
            self.look_for(Some(client.clone()));
        }
    }

    fn look_for(&self, client: Option<Client>) {
        let Some(search) = self.search.clone() else {
            return;
        };
        let seen = Arc::downgrade(&self.seen);
        tokio::spawn(async move {
            let (mut client, mut wait) = (client, search.min_wait);
            loop {
                tokio::time::sleep(wait).await;
                if seen.strong_count() == 0 {
                    return;
                }
                wait = wait.saturating_mul(2).min(search.max_wait);
                let found = search.try_once(&mut client).await;
                let Some(seen) = seen.upgrade() else {
                    return;
                };
                match found {
                    Ok(client) => {
                        tracing::info!("the tail is there again");
                        seen.send_replace(Seen::Here(client));
                        return;
                    }
                    Err(Error::Request(error)) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "the tail cannot be used");
                        seen.send_replace(Seen::Never(None));
                        return;
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::debug!(error, "the tail is still away");
                    }
                }
            }
        });
    }
}

impl Search {
    /// The tail, if it answers now. A client whose tail serves another model than before is forgotten.
    async fn try_once(&self, client: &mut Option<Client>) -> Result<Client, Error> {
        if let Some(known) = client {
            let checked = tokio::time::timeout(self.patience, known.check()).await;
            let late = || crate::error::TailError::Timeout {
                what: "manifest",
                after: self.patience,
            };
            return match checked.unwrap_or_else(|_| Err(late())) {
                Ok(()) => Ok(known.clone()),
                Err(error) => {
                    let is_another = matches!(&error, crate::error::TailError::Manifest { .. });
                    if is_another && self.address.is_some() {
                        *client = None;
                    }
                    Err(error.into())
                }
            };
        }
        let Some((url, config)) = &self.address else {
            return Err(crate::error::TailError::Closed.into());
        };
        let client = Client::connect_started(url, config.clone()).await?;
        (self.fits)(&client)?;
        Ok(client)
    }
}

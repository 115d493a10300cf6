//! How far a download has come, all its files together.

use std::sync::Arc;

/// Where a download stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The file at hand, as the source names it.
    pub file: String,
    /// How much is here, of all files.
    pub done_bytes: u64,
    /// How much there is to be, of all files whose size is known so far.
    pub total_bytes: u64,
    /// What came over the network, repetitions included.
    pub received_bytes: u64,
}

/// Is told of every few mebibytes.
pub type ProgressCallback = Arc<dyn Fn(&Progress) + Send + Sync>;

/// Adds up and reports every [`Meter::REPORT_BYTES`].
pub(crate) struct Meter {
    progress: Progress,
    /// In whole files.
    before_bytes: u64,
    /// Of this file.
    current_total_bytes: u64,
    planned_bytes: Option<u64>,
    reported_bytes: u64,
    callback: Option<ProgressCallback>,
}

impl Meter {
    const REPORT_BYTES: u64 = 1 << 20;

    pub(crate) fn new(callback: Option<ProgressCallback>) -> Self {
        Self {
            progress: Progress::default(),
            before_bytes: 0,
            current_total_bytes: 0,
            planned_bytes: None,
            reported_bytes: 0,
            callback,
        }
    }

    /// The sizes of all files are known to be this together.
    pub(crate) fn plan(&mut self, total_bytes: u64) {
        self.planned_bytes = Some(total_bytes);
        self.progress.total_bytes = total_bytes;
        self.report();
    }

    /// A file's turn.
    pub(crate) fn begin(&mut self, file: &str) {
        file.clone_into(&mut self.progress.file);
        self.current_total_bytes = 0;
    }

    /// The file at hand has so many bytes.
    pub(crate) fn size(&mut self, bytes: u64) {
        if self.planned_bytes.is_none() {
            self.progress.total_bytes =
                self.progress.total_bytes - self.current_total_bytes + bytes;
        }
        self.current_total_bytes = bytes;
        self.report();
    }

    /// So much of the file at hand is here.
    pub(crate) fn at(&mut self, bytes: u64) {
        self.progress.done_bytes = self.before_bytes + bytes;
        if self.progress.done_bytes.abs_diff(self.reported_bytes) >= Self::REPORT_BYTES {
            self.report();
        }
    }

    /// So much more is here, of files that come in pieces.
    pub(crate) fn more(&mut self, bytes: u64) {
        self.before_bytes += bytes;
        self.at(0);
    }

    pub(crate) const fn done_bytes(&self) -> u64 {
        self.progress.done_bytes
    }

    /// So much came over the network.
    pub(crate) fn received(&mut self, bytes: u64) {
        self.progress.received_bytes += bytes;
    }

    /// The file at hand is here.
    pub(crate) fn end(&mut self) {
        self.before_bytes += self.current_total_bytes;
        self.progress.done_bytes = self.before_bytes;
        self.report();
    }

    pub(crate) fn report(&mut self) {
        self.reported_bytes = self.progress.done_bytes;
        if let Some(callback) = &self.callback {
            callback(&self.progress);
        }
    }
}

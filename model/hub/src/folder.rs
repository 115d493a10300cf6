//! A model's folder behind an address, of the hub or of any web server: which files it must have, and fetching them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde_json::Value;

use crate::download::{Downloads, Wanted, sync_folder};
use crate::error::HubError;

const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 3] = [
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
];
const SINGLE_WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// The most files of weights.
const MAX_SHARDS: usize = 4096;

/// Written when everything is here.
const COMPLETE: &str = ".complete";

/// A folder behind an address.
pub(crate) struct Folder {
    /// For messages.
    pub(crate) name: String,
    /// Ends with a slash.
    pub(crate) root: Url,
    /// What there is, where the server says so.
    pub(crate) listing: Option<BTreeMap<String, Listed>>,
}

/// A file as a hub lists it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listed {
    pub(crate) bytes: Option<u64>,
    pub(crate) sha256: Option<String>,
}

/// Whether everything is in a folder of this machine.
pub(crate) fn is_complete(folder: &Path) -> bool {
    folder.join(COMPLETE).is_file()
}

impl Folder {
    /// Fetches all of it into `folder`.
    pub(crate) async fn fetch(
        &self,
        downloads: &mut Downloads,
        folder: &Path,
    ) -> Result<(), HubError> {
        if is_complete(folder) {
            return Ok(());
        }
        self.plan(downloads);
        self.fetch_small(downloads, folder).await?;
        for file in self.weights(downloads, folder).await? {
            self.fetch_file(downloads, folder, &file).await?;
        }
        let complete = folder.join(COMPLETE);
        std::fs::write(&complete, "").map_err(HubError::io(&complete))?;
        sync_folder(&complete);
        Ok(())
    }

    /// Fetches everything but the weights.
    pub(crate) async fn fetch_small(
        &self,
        downloads: &mut Downloads,
        folder: &Path,
    ) -> Result<(), HubError> {
        for file in REQUIRED {
            self.fetch_file(downloads, folder, file).await?;
        }
        for file in OPTIONAL {
            self.fetch_optional(downloads, folder, file).await?;
        }
        Ok(())
    }

    /// The names of the files of weights. An index is downloaded: the loader reads it, too.
    pub(crate) async fn weights(
        &self,
        downloads: &mut Downloads,
        folder: &Path,
    ) -> Result<Vec<String>, HubError> {
        let is_listed = |file| {
            self.listing
                .as_ref()
                .is_some_and(|all| all.contains_key(file))
        };
        if is_listed(SINGLE_WEIGHTS) {
            return Ok(vec![SINGLE_WEIGHTS.to_owned()]);
        }
        match self
            .fetch_optional(downloads, folder, WEIGHTS_INDEX)
            .await?
        {
            Some(index) => shards(&index),
            None => Ok(vec![SINGLE_WEIGHTS.to_owned()]),
        }
    }

    /// Fetches a file that must be there.
    pub(crate) async fn fetch_file(
        &self,
        downloads: &mut Downloads,
        folder: &Path,
        file: &str,
    ) -> Result<PathBuf, HubError> {
        let listed = match &self.listing {
            None => Listed::default(),
            Some(all) => all
                .get(file)
                .cloned()
                .ok_or_else(|| self.no_such_file(file))?,
        };
        let path = folder.join(file);
        let wanted = Wanted {
            url: self.url(file),
            what: &format!("{}/{file}", self.name),
            sha256: listed.sha256.as_deref(),
            bytes: listed.bytes,
            is_gguf: file.ends_with(".gguf"),
        };
        match downloads.fetch(&wanted, &path).await {
            Err(HubError::NotFound { .. }) => Err(self.no_such_file(file)),
            ended => ended.map(|()| path),
        }
    }

    async fn fetch_optional(
        &self,
        downloads: &mut Downloads,
        folder: &Path,
        file: &str,
    ) -> Result<Option<PathBuf>, HubError> {
        match self.fetch_file(downloads, folder, file).await {
            Err(HubError::NoSuchFile { .. }) => Ok(None),
            fetched => fetched.map(Some),
        }
    }

    /// Where a file is.
    pub(crate) fn url(&self, file: &str) -> Url {
        let mut url = self.root.clone();
        // Addresses of http and https always have a path.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(file.split('/'));
        }
        url
    }

    /// Tells how much will come, where the sizes are known.
    fn plan(&self, downloads: &mut Downloads) {
        let Some(listing) = &self.listing else {
            return;
        };
        let is_single = listing.contains_key(SINGLE_WEIGHTS);
        let wanted = listing.iter().filter(|(file, _)| {
            let file = file.as_str();
            let is_weights = if is_single {
                file == SINGLE_WEIGHTS
            } else {
                is_shard(file)
            };
            is_weights
                || file == WEIGHTS_INDEX && !is_single
                || REQUIRED.contains(&file)
                || OPTIONAL.contains(&file)
        });
        let bytes: Option<u64> = wanted.map(|(_, listed)| listed.bytes).sum();
        if let Some(bytes) = bytes {
            downloads.meter.plan(bytes);
        }
    }

    fn no_such_file(&self, file: &str) -> HubError {
        let listed = self.listing.iter().flat_map(|all| all.keys());
        let ggufs: Vec<&str> = listed
            .filter(|found| found.ends_with(".gguf"))
            .map(String::as_str)
            .take(20)
            .collect();
        let hint = if ggufs.is_empty() {
            "expected config.json, tokenizer.json and model.safetensors (or its index), or a .gguf file"
                .to_owned()
        } else {
            let ggufs = ggufs.join(", ");
            format!(
                "it has these GGUF files: {ggufs}; name one as hf://{}/FILE",
                self.name
            )
        };
        HubError::NoSuchFile {
            repository: self.name.clone(),
            file: file.to_owned(),
            hint,
        }
    }
}

/// `model-00001-of-00003.safetensors`
fn is_shard(file: &str) -> bool {
    file.starts_with("model-") && file.contains("-of-") && file.ends_with(".safetensors")
}

/// The files that an index names.
fn shards(index: &Path) -> Result<Vec<String>, HubError> {
    let invalid = |reason: String| {
        // It would be read again and again.
        let _ = std::fs::remove_file(index);
        HubError::Source {
            source_text: index.display().to_string(),
            reason,
        }
    };
    let json = std::fs::read(index).map_err(HubError::io(index))?;
    let json: Value = serde_json::from_slice(&json).map_err(|error| invalid(error.to_string()))?;
    let map = json["weight_map"].as_object();
    let files: BTreeSet<&str> = map
        .into_iter()
        .flat_map(|map| map.values().filter_map(Value::as_str))
        .collect();
    let is_plain = |file: &&str| Path::new(file).components().count() == 1 && !file.contains('\\');
    if files.is_empty() || files.len() > MAX_SHARDS || !files.iter().all(is_plain) {
        return Err(invalid(format!(
            "expected a weight_map with the names of 1 to {MAX_SHARDS} files beside it"
        )));
    }
    Ok(files.into_iter().map(str::to_owned).collect())
}

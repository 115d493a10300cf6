//! Repositories of the model hub, by way of the hub crate.

use std::path::{Path, PathBuf};

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::HubError;
use crate::{Hub, Meter};

/// What a source names.
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) revision: String,
    pub(crate) file: Option<String>,
}

impl Wanted {
    fn named(&self) -> Repo {
        self.at(&self.revision)
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }
}

/// Attempts for each file; a later one continues where an earlier one broke off.
const RETRIES: usize = 3;

const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 3] = [
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
];
const SINGLE_WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Downloads what is wanted and not yet here.
///
/// Returns the GGUF file, or the folder of the commit.
pub(crate) fn download(hub: &Hub, wanted: &Wanted) -> Result<PathBuf, HubError> {
    let cache_dir = hub.cache_dir.join("hub");
    std::fs::create_dir_all(&cache_dir).map_err(HubError::io(&cache_dir))?;
    // Absolute, because the hub crate links its files by paths relative to each other and asserts it.
    let cache_dir = cache_dir.canonicalize().map_err(HubError::io(&cache_dir))?;
    let cache = Cache::new(cache_dir);
    let mut builder = ApiBuilder::from_cache(cache.clone())
        .with_progress(false)
        .with_retries(RETRIES);
    if let Some(endpoint) = &hub.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    if let Some(token) = &hub.token {
        builder = builder.with_token(Some(token.clone()));
    }
    let api = builder
        .build()
        .map_err(|source| hub_error(&wanted.id, source))?;
    let info = match api.repo(wanted.named()).info() {
        Ok(info) => info,
        Err(error) => {
            return offline(&cache, wanted).ok_or_else(|| repository_error(wanted, error));
        }
    };
    let path = Commit::new(hub, wanted, &api, &cache, &info).download()?;
    // The name now leads to this commit; without a network the next run finds it by that.
    cache
        .repo(wanted.named())
        .create_ref(&info.sha)
        .map_err(HubError::io(cache.path()))?;
    Ok(path)
}

/// One commit of one repository, so that the files fit each other.
struct Commit<'a> {
    hub: &'a Hub,
    id: &'a str,
    file: Option<&'a str>,
    repo: ApiRepo,
    cached: hf_hub::CacheRepo,
    info: &'a RepoInfo,
}

impl<'a> Commit<'a> {
    fn new(hub: &'a Hub, wanted: &'a Wanted, api: &Api, cache: &Cache, info: &'a RepoInfo) -> Self {
        let repo = api.repo(wanted.at(&info.sha));
        let cached = cache.repo(wanted.at(&info.sha));
        Self {
            hub,
            id: &wanted.id,
            file: wanted.file.as_deref(),
            repo,
            cached,
            info,
        }
    }

    fn download(&self) -> Result<PathBuf, HubError> {
        if let Some(file) = self.file {
            return self.require(file);
        }
        let config = self.require(REQUIRED[0])?;
        let folder = config.parent().map(Path::to_owned).unwrap_or_default();
        self.expect_in(&folder, &self.require(REQUIRED[1])?)?;
        for file in OPTIONAL.into_iter().filter(|file| self.has(file)) {
            self.expect_in(&folder, &self.fetch(file)?)?;
        }
        for file in self.weights()? {
            self.expect_in(&folder, &self.require(&file)?)?;
        }
        Ok(folder)
    }

    /// The safetensors files; an index is downloaded, because the loader reads it too.
    fn weights(&self) -> Result<Vec<String>, HubError> {
        if self.has(SINGLE_WEIGHTS) {
            return Ok(vec![SINGLE_WEIGHTS.to_owned()]);
        }
        if !self.has(WEIGHTS_INDEX) {
            return Err(self.no_such_file(SINGLE_WEIGHTS));
        }
        let mut shards: Vec<String> = self
            .files()
            .filter(|file| is_shard(file))
            .map(ToOwned::to_owned)
            .collect();
        shards.push(WEIGHTS_INDEX.to_owned());
        Ok(shards)
    }

    fn require(&self, file: &str) -> Result<PathBuf, HubError> {
        if self.has(file) {
            self.fetch(file)
        } else {
            Err(self.no_such_file(file))
        }
    }

    fn fetch(&self, file: &str) -> Result<PathBuf, HubError> {
        if let Some(path) = self.cached.get(file) {
            return Ok(path);
        }
        let meter = Meter::new(self.hub, file, None);
        let path = self.repo.download_with_progress(file, HubMeter(meter));
        path.map_err(|source| hub_error(&format!("{}/{file}", self.id), source))
    }

    fn expect_in(&self, folder: &Path, file: &Path) -> Result<(), HubError> {
        if file.parent() == Some(folder) {
            return Ok(());
        }
        Err(HubError::MixedCommits {
            repository: self.id.to_owned(),
        })
    }

    fn files(&self) -> impl Iterator<Item = &str> {
        self.info
            .siblings
            .iter()
            .map(|sibling| sibling.rfilename.as_str())
    }

    fn has(&self, file: &str) -> bool {
        self.files().any(|found| found == file)
    }

    fn no_such_file(&self, file: &str) -> HubError {
        let ggufs: Vec<&str> = self
            .files()
            .filter(|found| found.ends_with(".gguf"))
            .take(20)
            .collect();
        let hint = if ggufs.is_empty() {
            "expected config.json, tokenizer.json and model.safetensors (or its index), or a .gguf file".to_owned()
        } else {
            format!(
                "it has these GGUF files: {}; name one as hf://{}/FILE",
                ggufs.join(", "),
                self.id
            )
        };
        HubError::NoSuchFile {
            repository: self.id.to_owned(),
            file: file.to_owned(),
            hint,
        }
    }
}

/// `model-00001-of-00003.safetensors`
fn is_shard(file: &str) -> bool {
    file.starts_with("model-") && file.contains("-of-") && file.ends_with(".safetensors")
}

/// What an earlier run left, where the hub cannot be asked.
fn offline(cache: &Cache, wanted: &Wanted) -> Option<PathBuf> {
    let cached = cache.repo(wanted.named());
    let found = match &wanted.file {
        Some(file) => cached.get(file),
        // The index or the single file is fetched last: with it, everything is here.
        None => [WEIGHTS_INDEX, SINGLE_WEIGHTS]
            .into_iter()
            .find_map(|file| cached.get(file))
            .and_then(|file| file.parent().map(Path::to_owned)),
    }?;
    tracing::warn!(
        repository = wanted.id,
        "the model hub gave no answer; using the files of an earlier run"
    );
    Some(found)
}

fn repository_error(wanted: &Wanted, error: ApiError) -> HubError {
    let (repository, revision) = (wanted.id.clone(), wanted.revision.clone());
    if let ApiError::RequestError(request) = &error
        && let ureq::Error::StatusCode(status @ (401 | 403 | 404)) = **request
    {
        return HubError::NoSuchRepository {
            repository,
            revision,
            status,
        };
    }
    hub_error(&repository, error)
}

fn hub_error(what: &str, source: ApiError) -> HubError {
    HubError::Hub {
        what: what.to_owned(),
        source: Box::new(source),
    }
}

/// The hub crate's idea of progress.
struct HubMeter(Meter);

impl hf_hub::api::Progress for HubMeter {
    fn init(&mut self, size: usize, _filename: &str) {
        self.0.start(Some(size as u64));
    }

    fn update(&mut self, size: usize) {
        self.0.add(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish();
    }
}

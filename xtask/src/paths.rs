//! Where things are.

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository")
}

/// Where what was fetched or built outside cargo is kept; safe to delete.
pub fn cache_dir() -> PathBuf {
    dirs::cache_dir()
        .unwrap_or_else(std::env::temp_dir)
        .join("headway")
}

/// A program of this workspace, built by [`crate::processes::build`].
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    // Beside xtask itself, which cargo has just built in the same profile.
    let path = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

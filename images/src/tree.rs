//! The files of an image.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, ensure};

/// Files and folders by their paths from the root, such as `usr/bin/tail-server`. All belong to root.
#[derive(Clone, Debug, Default)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

#[derive(Clone, Debug)]
struct Entry {
    mode: u32,
    /// None is a folder.
    content: Option<Vec<u8>>,
}

impl Tree {
    /// Adds a file and the folders above it. `path` is absolute within the image.
    ///
    /// # Errors
    /// Where the path is not absolute and plain, or taken.
    pub fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) -> anyhow::Result<()> {
        let entry = Entry {
            mode,
            content: Some(content),
        };
        self.add(path, entry)
    }

    /// Adds a folder and those above it.
    ///
    /// # Errors
    /// As [`Tree::file`].
    pub fn folder(&mut self, path: &str, mode: u32) -> anyhow::Result<()> {
        let entry = Entry {
            mode,
            content: None,
        };
        self.add(path, entry)
    }

    fn add(&mut self, path: &str, entry: Entry) -> anyhow::Result<()> {
        let relative = path
            .strip_prefix('/')
            .map(Path::new)
            .filter(|path| {
                path.components()
                    .all(|part| matches!(part, Component::Normal(_)))
            })
            .with_context(|| format!("{path:?} is no absolute path without dots"))?;
        for above in relative.ancestors().skip(1) {
            if above.as_os_str().is_empty() {
                break;
            }
            let found = self.0.entry(above.to_owned()).or_insert(Entry {
                mode: 0o755,
                content: None,
            });
            ensure!(found.content.is_none(), "{} is a file", above.display());
        }
        let taken = self.0.insert(relative.to_owned(), entry);
        ensure!(taken.is_none(), "{path} is there twice");
        Ok(())
    }

    /// Writes a tar archive: entries in the order of their paths, owner 0, time 0.
    ///
    /// # Errors
    /// Where `output` fails.
    pub fn write_tar(&self, output: impl Write) -> anyhow::Result<()> {
        let mut archive = tar::Builder::new(output);
        for (path, entry) in &self.0 {
            let content = entry.content.as_deref().unwrap_or_default();
            let mut header = tar::Header::new_ustar();
            header.set_mode(entry.mode);
            header.set_size(content.len() as u64);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_entry_type(match entry.content {
                Some(_) => tar::EntryType::Regular,
                None => tar::EntryType::Directory,
            });
            archive
                .append_data(&mut header, path, content)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        archive.finish().context("ending an archive")
    }

    /// Writes the files below `root`, for a build that copies them into an image.
    ///
    /// # Errors
    /// Where `root` holds anything already, or a file cannot be written.
    pub fn write_folder(&self, root: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(root).with_context(|| format!("creating {}", root.display()))?;
        let is_empty = fs::read_dir(root)?.next().is_none();
        ensure!(is_empty, "{} is not empty", root.display());
        for (path, entry) in &self.0 {
            let path = root.join(path);
            match &entry.content {
                Some(content) => fs::write(&path, content),
                None => fs::create_dir(&path),
            }
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)))
            .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_image_are_refused() {
        for path in ["etc/passwd", "/../etc/passwd", "/a/../../b"] {
            let mut tree = Tree::default();
            assert!(tree.file(path, 0o644, Vec::new()).is_err(), "{path}");
        }
    }

    #[test]
    fn a_path_is_there_once() {
        let mut tree = Tree::default();
        tree.file("/etc/passwd", 0o644, Vec::new()).unwrap();
        assert!(tree.file("/etc/passwd", 0o644, Vec::new()).is_err());
        assert!(tree.file("/etc/passwd/x", 0o644, Vec::new()).is_err());
    }
}

//! An image as an OCI archive: a tar file that holds an
//! [OCI image layout](https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md), with one layer.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::tree::Tree;

/// An image of one program.
#[derive(Clone, Debug)]
pub struct Image {
    /// Repository and tag, such as `headway.test/tail-server:dev`.
    pub name: String,
    /// Absolute path of the program within the image.
    pub entrypoint: String,
    /// Number of the user that the program runs as; its group has the same.
    pub user: u32,
    /// What registries and people are told.
    pub labels: BTreeMap<String, String>,
    /// Its files.
    pub tree: Tree,
}

/// A part of an archive: media type, and content.
struct Blob {
    media_type: &'static str,
    content: Vec<u8>,
}

impl Blob {
    fn json(media_type: &'static str, value: &Value) -> Self {
        Self {
            media_type,
            content: value.to_string().into_bytes(),
        }
    }

    fn digest(&self) -> String {
        let hash = Sha256::digest(&self.content);
        let hex = hash
            .iter()
            .fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        format!("sha256:{hex}")
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": self.digest(),
            "size": self.content.len(),
        })
    }
}

impl Image {
    /// Writes the archive, whole or not at all. It depends on nothing but this image, not even on the time.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write_archive(&self, path: &Path) -> anyhow::Result<()> {
        let mut layer = Vec::new();
        self.tree.write_tar(&mut layer)?;
        let layer = Blob {
            media_type: "application/vnd.oci.image.layer.v1.tar",
            content: layer,
        };
        let config = self.config(&layer);
        let manifest = Blob::json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.descriptor(),
                "layers": [layer.descriptor()],
                "annotations": self.labels,
            }),
        );
        let mut archive = Tree::default();
        let version = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        archive.file("/oci-layout", 0o644, version.into_bytes())?;
        let index = self.index(&manifest).to_string();
        archive.file("/index.json", 0o644, index.into_bytes())?;
        for blob in [manifest, config, layer] {
            let path = format!("/blobs/{}", blob.digest().replace(':', "/"));
            archive.file(&path, 0o644, blob.content)?;
        }
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        // A name of its own: two commands may write it at once.
        let partial = tempfile::NamedTempFile::new_in(folder)
            .with_context(|| format!("creating a file in {}", folder.display()))?;
        let mut file = BufWriter::new(partial.as_file());
        archive.write_tar(&mut file)?;
        file.flush()
            .with_context(|| format!("writing {}", path.display()))?;
        drop(file);
        fs::set_permissions(&partial, Permissions::from_mode(0o644))
            .with_context(|| format!("making {} readable", path.display()))?;
        partial
            .persist(path)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(())
    }

    fn config(&self, layer: &Blob) -> Blob {
        Blob::json(
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "created": "1970-01-01T00:00:00Z",
                "architecture": architecture(),
                "os": "linux",
                "config": {
                    "User": format!("{0}:{0}", self.user),
                    "Entrypoint": [self.entrypoint],
                    "WorkingDir": "/",
                    "Labels": self.labels,
                },
                // Of the layer as it is, which is not compressed.
                "rootfs": {"type": "layers", "diff_ids": [layer.digest()]},
                "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask images"}],
            }),
        )
    }

    fn index(&self, manifest: &Blob) -> Value {
        let mut descriptor = manifest.descriptor();
        descriptor["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        descriptor["annotations"] = json!({
            // The first is the standard's, which is a tag for some tools; containerd reads the second.
            "org.opencontainers.image.ref.name": tag,
            "io.containerd.image.name": self.name,
        });
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor],
        })
    }
}

/// This machine's, in Go's words: programs are built where images are.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let mut tree = Tree::default();
        tree.file("/bin/program", 0o755, b"program".to_vec())
            .unwrap();
        tree.folder("/tmp", 0o1777).unwrap();
        Image {
            name: "headway.test/program:dev".to_owned(),
            entrypoint: "/bin/program".to_owned(),
            user: 65_532,
            labels: BTreeMap::new(),
            tree,
        }
    }

    #[test]
    fn same_files_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["one", "two"].map(|name| folder.path().join(name));
        for path in &paths {
            image().write_archive(path).unwrap();
        }
        let [one, two] = paths.map(|path| fs::read(path).unwrap());
        assert!(one == two);
    }

    #[test]
    fn every_part_lies_under_its_digest_and_is_named_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        image().write_archive(&path).unwrap();
        let mut blobs = BTreeMap::new();
        let mut index = Value::Null;
        for entry in tar::Archive::new(fs::File::open(path).unwrap())
            .entries()
            .unwrap()
        {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            if name == "index.json" {
                index = serde_json::from_slice(&content).unwrap();
            }
            if let Some(digest) = name.strip_prefix("blobs/sha256/") {
                let blob = Blob {
                    media_type: "",
                    content,
                };
                if !digest.is_empty() {
                    assert_eq!(blob.digest(), format!("sha256:{digest}"));
                    blobs.insert(blob.digest(), blob.content);
                }
            }
        }
        let digest = |value: &Value| value["digest"].as_str().unwrap().to_owned();
        let manifest = &index["manifests"][0];
        assert_eq!(
            manifest["annotations"]["io.containerd.image.name"],
            "headway.test/program:dev"
        );
        let manifest: Value = serde_json::from_slice(&blobs[&digest(manifest)]).unwrap();
        let config: Value = serde_json::from_slice(&blobs[&digest(&manifest["config"])]).unwrap();
        assert_eq!(config["config"]["User"], "65532:65532");
        let layer = digest(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], layer.as_str());
        let mut layer = tar::Archive::new(blobs[&layer].as_slice());
        let names: Vec<_> = layer
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["bin", "bin/program", "tmp"]);
    }
}

//! `cargo xtask images`: container images of the operator and of tail-server. `Dockerfile` has its files from here, too.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use headway_images::archive::Image;
use headway_images::recipe::{PARTS, Part};

use crate::paths::{program, root};
use crate::processes;

/// Where images that are only for this machine come from, by their names: nobody serves that host.
pub const LOCAL_REPOSITORY: &str = "headway.test";
/// The tag of such images.
pub const LOCAL_TAG: &str = "dev";

/// Options of `images`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What stands before the image's own name: a registry, and a path in it.
    #[arg(long, default_value = LOCAL_REPOSITORY)]
    repository: String,
    /// The tag.
    #[arg(long, default_value = LOCAL_TAG)]
    tag: String,
    /// The folder that the archives go into [default: target/images].
    #[arg(long)]
    output: Option<PathBuf>,
    /// Only this one: operator or tail-server.
    #[arg(long)]
    part: Option<String>,
    /// Writes the image's files into this empty folder instead, as Dockerfile copies them.
    #[arg(long, requires = "part", conflicts_with = "output")]
    folder: Option<PathBuf>,
}

/// Builds the programs and writes the archives.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let wanted = |part: &&Part| arguments.part.as_ref().is_none_or(|name| name == part.name);
    let parts: Vec<&Part> = PARTS.iter().filter(wanted).collect();
    ensure!(
        !parts.is_empty(),
        "--part {} is neither operator nor tail-server",
        arguments.part.as_deref().unwrap_or_default()
    );
    processes::build_all()?;
    if let Some(folder) = &arguments.folder {
        for part in parts {
            image(part, &arguments.repository, &arguments.tag)?
                .tree
                .write_folder(folder)?;
        }
        return Ok(());
    }
    let output = arguments.output.clone().unwrap_or_else(output);
    for part in parts {
        let image = image(part, &arguments.repository, &arguments.tag)?;
        let path = write(part, &image, &output)?;
        let bytes = fs::metadata(&path)?.len();
        println!(
            "{}  {} MB  {}",
            image.name,
            bytes / 1_000_000,
            path.display()
        );
    }
    Ok(())
}

/// Writes the images of [`LOCAL_REPOSITORY`]; returns the archives' paths.
pub fn local() -> anyhow::Result<Vec<PathBuf>> {
    let output = output();
    PARTS
        .iter()
        .map(|part| write(part, &image(part, LOCAL_REPOSITORY, LOCAL_TAG)?, &output))
        .collect()
}

fn image(part: &Part, repository: &str, tag: &str) -> anyhow::Result<Image> {
    part.image(
        format!("{repository}/{}:{tag}", part.name),
        &program(part.program)?,
        &root().join("LICENSE"),
        env!("CARGO_PKG_VERSION"),
    )
}

fn write(part: &Part, image: &Image, output: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(output).with_context(|| format!("creating {}", output.display()))?;
    let path = output.join(format!("{}.tar", part.name));
    image.write_archive(&path)?;
    Ok(path)
}

fn output() -> PathBuf {
    root().join("target/images")
}

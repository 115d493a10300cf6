//! How many sessions a tail should have: an annotation of its pod, which Kubernetes projects into a file that the tail
//! reads again whenever it changes.
//!
//! A file, and no request to the tail: whoever may annotate the pod may say it, so that no one else who reaches the tail
//! can send its sessions away, and the operator needs no credentials of it.

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, DownwardAPIVolumeSource, ObjectFieldSelector, PodTemplateSpec, Volume,
    VolumeMount,
};

use crate::names;

const VOLUME: &str = "headway-pod";
const FOLDER: &str = "/pod";
const FILE: &str = "session-target";

/// `template` with the file and the option that names it.
pub(super) fn projected(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let Some(spec) = &mut template.spec else {
        return template;
    };
    let annotation = format!(
        "metadata.annotations['{}']",
        names::SESSION_TARGET_ANNOTATION
    );
    spec.volumes.get_or_insert_default().push(Volume {
        name: VOLUME.to_owned(),
        downward_api: Some(DownwardAPIVolumeSource {
            items: Some(vec![DownwardAPIVolumeFile {
                path: FILE.to_owned(),
                field_ref: Some(ObjectFieldSelector {
                    field_path: annotation,
                    ..ObjectFieldSelector::default()
                }),
                ..DownwardAPIVolumeFile::default()
            }]),
            ..DownwardAPIVolumeSource::default()
        }),
        ..Volume::default()
    });
    for container in &mut spec.containers {
        let arguments = container.args.get_or_insert_default();
        arguments.push(format!("--session-target-file={FOLDER}/{FILE}"));
        let mounts = container.volume_mounts.get_or_insert_default();
        mounts.push(VolumeMount {
            name: VOLUME.to_owned(),
            mount_path: FOLDER.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    template
}

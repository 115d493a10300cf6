//! The ResourceClaimTemplate: a pod's accelerator by dynamic resource allocation.

use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceRequest, ExactDeviceRequest, ResourceClaimSpec, ResourceClaimTemplate,
    ResourceClaimTemplateSpec,
};
use serde_json::Value;

use super::{json, metadata};
use crate::kinds::OwnedKind;
use crate::validate::ValidSpec;

/// Name of the request within a claim.
pub(super) const REQUEST: &str = "accelerator";

pub(super) fn build(valid: &ValidSpec) -> Option<Value> {
    let accelerator = valid.spec.tail.accelerator.as_ref()?;
    let device_class = accelerator.device_class_name.as_ref()?;
    Some(json(&ResourceClaimTemplate {
        metadata: metadata(OwnedKind::ResourceClaimTemplate, valid),
        spec: ResourceClaimTemplateSpec {
            metadata: None,
            spec: ResourceClaimSpec {
                devices: Some(DeviceClaim {
                    requests: Some(vec![DeviceRequest {
                        name: REQUEST.to_owned(),
                        exactly: Some(ExactDeviceRequest {
                            device_class_name: device_class.clone(),
                            allocation_mode: Some("ExactCount".to_owned()),
                            count: Some(i64::from(accelerator.count)),
                            ..ExactDeviceRequest::default()
                        }),
                        ..DeviceRequest::default()
                    }]),
                    ..DeviceClaim::default()
                }),
            },
        },
    }))
}

//! Tenants, and names in general.

use fabric::model;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::failure::Failure;

/// Parses a name that stands in `field`.
///
/// # Errors
/// `invalid`, with the field and the rule.
pub fn parse_name(field: &str, text: &str) -> Result<model::Name, Failure> {
    text.parse().map_err(|error: model::NameError| {
        fabric::rpc::Refusal::new("invalid", format!("{field}: {error}"))
            .field(field, text)
            .hint("choose another name")
            .into()
    })
}

/// What a tenant may guarantee to its machines in all; what is absent has no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machines: Option<u32>,
}

impl From<Quota> for model::Quota {
    fn from(quota: Quota) -> Self {
        model::Quota { cpu_millis: quota.cpu_millis, memory_bytes: quota.memory_bytes, machines: quota.machines }
    }
}

impl From<model::Quota> for Quota {
    fn from(quota: model::Quota) -> Self {
        Quota { cpu_millis: quota.cpu_millis, memory_bytes: quota.memory_bytes, machines: quota.machines }
    }
}

/// A tenant to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Its name, unique in the cluster.
    pub name: String,
    /// The tenant above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Its limits.
    #[serde(default)]
    pub quota: Quota,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// The tenant above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Its limits.
    pub quota: Quota,
    /// When it was made.
    pub created_ms: u64,
    /// Its revision, as in the ETag.
    pub revision: u64,
}

impl From<model::TenantRecord> for Tenant {
    fn from(record: model::TenantRecord) -> Self {
        Tenant {
            name: record.name.to_string(),
            parent: record.parent.map(|parent| parent.to_string()),
            quota: record.quota.into(),
            created_ms: record.created_ms,
            revision: record.revision,
        }
    }
}

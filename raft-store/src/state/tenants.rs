//! Tenants: a tree of owners with quotas.

use fabric::human::count;
use fabric::limits::TENANTS_MAX;
use fabric::model::{Name, Quota, Resources, TenantRecord};
use fabric::rpc::Refusal;

use super::{State, Usage, check_name, check_revision, words};
use crate::codes;
use crate::command::Outcome;
use crate::limits::TENANT_DEPTH_MAX;

impl State {
    pub(super) fn tenant_of(&self, name: &Name) -> Result<&TenantRecord, Refusal> {
        check_name("tenant", name)?;
        self.tenants.get(name).ok_or_else(|| {
            Refusal::new(codes::NOT_FOUND, format!("there is no tenant {name}"))
                .field("tenant", name)
                .hint("`smartnode tenant list` shows them")
        })
    }

    pub(super) fn create_tenant(
        &mut self,
        name: &Name,
        parent: Option<&Name>,
        quota: Quota,
    ) -> Result<Outcome, Refusal> {
        check_name("name", name)?;
        if self.tenants.contains_key(name) {
            return Err(Refusal::new(codes::EXISTS, format!("tenant {name} exists"))
                .field("name", name)
                .hint("choose another name"));
        }
        if self.tenants.len() >= TENANTS_MAX {
            return Err(Refusal::new(codes::LIMIT, format!("there are {TENANTS_MAX} tenants, and no more fit")));
        }
        if let Some(parent) = parent {
            self.tenant_of(parent)?;
            if self.lineage(parent).len() >= TENANT_DEPTH_MAX {
                return Err(Refusal::new(
                    codes::LIMIT,
                    format!("the tree of tenants has at most {TENANT_DEPTH_MAX} levels"),
                )
                .field("parent", parent));
            }
        }
        let (created_ms, revision) = (self.now_ms(), self.revision());
        if let Some(parent) = parent {
            *self.index.children.entry(parent.clone()).or_default() += 1;
        }
        let record = TenantRecord { name: name.clone(), parent: parent.cloned(), quota, created_ms, revision };
        self.tenants.insert(name.clone(), record);
        Ok(Outcome::Done { revision })
    }

    pub(super) fn delete_tenant(&mut self, name: &Name, expected: Option<u64>) -> Result<Outcome, Refusal> {
        let tenant = self.tenant_of(name)?;
        check_revision(expected, tenant.revision)?;
        let machines = self.machines_of(name).count();
        let images = self.images_of(name).count();
        let children = self.index.children.get(name).copied().unwrap_or(0);
        if machines + images + children as usize > 0 {
            return Err(Refusal::new(
                codes::IN_USE,
                format!(
                    "tenant {name} owns {}, {} and {}",
                    count(machines, "machine"),
                    count(images, "image"),
                    count(children as usize, "tenant")
                ),
            )
            .field("tenant", name)
            .hint("delete what it owns first"));
        }
        if let Some(parent) = tenant.parent.clone()
            && let Some(count) = self.index.children.get_mut(&parent)
        {
            *count -= 1;
            if *count == 0 {
                self.index.children.remove(&parent);
            }
        }
        self.tenants.remove(name);
        Ok(Outcome::Removed)
    }

    pub(super) fn set_quota(&mut self, name: &Name, quota: Quota, expected: Option<u64>) -> Result<Outcome, Refusal> {
        let tenant = self.tenant_of(name)?;
        check_revision(expected, tenant.revision)?;
        if tenant.quota == quota {
            return Ok(Outcome::Done { revision: tenant.revision });
        }
        if let Some(over) = exceeded(&quota, &self.usage(name)) {
            return Err(Refusal::new(codes::IN_USE, format!("tenant {name} uses more already: {}", over.words()))
                .field(over.field, over.limit)
                .hint("delete machines first, or allow more"));
        }
        let revision = self.revision();
        if let Some(tenant) = self.tenants.get_mut(name) {
            tenant.quota = quota;
            tenant.revision = revision;
        }
        Ok(Outcome::Done { revision })
    }

    /// Whether one more machine fits the quotas of its tenant and of all above it.
    pub(super) fn check_quota(&self, tenant: &Name, resources: &Resources) -> Result<(), Refusal> {
        for name in self.lineage(tenant) {
            let Some(record) = self.tenants.get(&name) else { continue };
            let used = self.usage(&name);
            let wanted = Usage {
                cpu_millis: used.cpu_millis + u64::from(resources.cpu_millis),
                memory_bytes: used.memory_bytes + resources.memory_bytes,
                machines: used.machines + 1,
            };
            if let Some(over) = exceeded(&record.quota, &wanted) {
                return Err(Refusal::new(
                    codes::QUOTA,
                    format!("the quota of tenant {name} is exceeded: {}", over.words()),
                )
                .field(over.field, over.wanted)
                .hint("delete machines, ask for less, or have the quota raised"));
            }
        }
        Ok(())
    }
}

/// A limit that is too small.
pub(super) struct Exceeded {
    field: &'static str,
    wanted: String,
    limit: String,
}

impl Exceeded {
    fn words(&self) -> String {
        format!("{} of {} {}", self.wanted, self.limit, self.field)
    }
}

pub(super) fn exceeded(quota: &Quota, usage: &Usage) -> Option<Exceeded> {
    let over = |field, limit: Option<u64>, wanted: u64, words: fn(u64) -> String| {
        limit.filter(|limit| wanted > *limit).map(|limit| Exceeded {
            field,
            wanted: words(wanted),
            limit: words(limit),
        })
    };
    over("machines", quota.machines.map(u64::from), u64::from(usage.machines), |n| n.to_string())
        .or_else(|| over("cpu", quota.cpu_millis, usage.cpu_millis, words::cores))
        .or_else(|| over("memory", quota.memory_bytes, usage.memory_bytes, |n| words::bytes(n, true)))
}

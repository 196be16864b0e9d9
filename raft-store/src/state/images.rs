//! Images: names of content that nodes hold.

use fabric::human::count;
use fabric::ids::Digest;
use fabric::limits::IMAGES_MAX;
use fabric::model::{ImageRecord, Name};
use fabric::rpc::Refusal;

use super::{State, check_name, check_revision};
use crate::codes;
use crate::command::Outcome;

impl State {
    /// The images of a tenant by name.
    pub fn images_of(&self, tenant: &Name) -> impl Iterator<Item = &ImageRecord> + '_ {
        let tenant = tenant.clone();
        // The least name there is, so that the range begins with the tenant's first image.
        let first: Option<Name> = "0".parse().ok();
        first.into_iter().flat_map(move |first| {
            let owner = tenant.clone();
            self.images
                .range((tenant.clone(), first)..)
                .take_while(move |((t, _), _)| *t == owner)
                .map(|(_, image)| image)
        })
    }

    pub(super) fn put_image(
        &mut self,
        tenant: &Name,
        name: &Name,
        digest: Digest,
        size_bytes: u64,
        expected: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        check_name("name", name)?;
        self.tenant_of(tenant)?;
        let (created_ms, revision) = (self.now_ms(), self.revision());
        let key = (tenant.clone(), name.clone());
        let full = self.images.len() >= IMAGES_MAX;
        match self.images.get_mut(&key) {
            Some(image) => {
                check_revision(expected, image.revision)?;
                if (image.digest, image.size_bytes) != (digest, size_bytes) {
                    (image.digest, image.size_bytes, image.revision) = (digest, size_bytes, revision);
                }
                Ok(Outcome::Done { revision: image.revision })
            }
            None if expected.is_some() => Err(no_image(tenant, name)),
            None if full => Err(Refusal::new(codes::LIMIT, format!("there are {IMAGES_MAX} images, and no more fit"))
                .hint("delete some: `smartnode image list`, `smartnode image delete NAME`")),
            None => {
                let (tenant, name) = key.clone();
                self.images.insert(key, ImageRecord { tenant, name, digest, size_bytes, created_ms, revision });
                Ok(Outcome::Done { revision })
            }
        }
    }

    pub(super) fn delete_image(
        &mut self,
        tenant: &Name,
        name: &Name,
        expected: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        let key = (tenant.clone(), name.clone());
        let image = self.image_of(tenant, name)?;
        check_revision(expected, image.revision)?;
        if let Some(users) = self.index.image_users.get(&key) {
            return Err(Refusal::new(
                codes::IN_USE,
                format!("image {name} is used by {}", count(*users as usize, "machine")),
            )
            .field("image", name)
            .hint("delete them first"));
        }
        self.images.remove(&key);
        Ok(Outcome::Removed)
    }

    pub(super) fn image_of(&self, tenant: &Name, name: &Name) -> Result<&ImageRecord, Refusal> {
        check_name("image", name)?;
        self.images.get(&(tenant.clone(), name.clone())).ok_or_else(|| no_image(tenant, name))
    }
}

fn no_image(tenant: &Name, name: &Name) -> Refusal {
    Refusal::new(codes::NOT_FOUND, format!("tenant {tenant} has no image {name}"))
        .field("image", name)
        .hint("`smartnode image list` shows its images, `smartnode image from-host` makes one")
}

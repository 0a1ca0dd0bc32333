"""Real KVM guests and processes under each real mechanism, recorded together with their own clock."""

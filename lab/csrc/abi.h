/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel ABI that older distribution headers lack (Debian 12 ships those of 6.1). Numbers are fixed by the kernel. */
#ifndef LAB_ABI_H
#define LAB_ABI_H

#include <linux/kvm.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1) /* 6.4 */
#endif

#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif

/* struct kvm_userspace_memory_region2 (6.8) */
struct lab_region2 {
	__u32 slot, flags;
	__u64 guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	__u32 guest_memfd, pad1;
	__u64 pad2[14];
};
#define LAB_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct lab_region2)
#define LAB_MEM_GUEST_MEMFD (1u << 2)

/* struct kvm_create_guest_memfd (6.8); the flags came with 6.18 */
struct lab_create_guest_memfd {
	__u64 size, flags, reserved[6];
};
#define LAB_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct lab_create_guest_memfd)
#define LAB_GUEST_MEMFD_MMAP (1ull << 0)
#define LAB_GUEST_MEMFD_INIT_SHARED (1ull << 1)
#define LAB_CAP_GUEST_MEMFD 234
#define LAB_CAP_GUEST_MEMFD_FLAGS 244

#endif

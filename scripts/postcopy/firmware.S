/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * A 64 KiB firmware that is the whole guest: from the reset vector to long mode to CPL 3 (by IRETQ), then it dirties
 * PAGES pages of RAM in random order for ever. For machines where a Linux guest does not boot under KVM.
 *
 * RAM: 0x1000 PML4, 0x2000 PDPT, 0x3000 and 0x4000 page directories (2 MiB pages), 0x6000 iterations so far,
 * from BASE on the pages that are dirtied. Assemble with -DPAGES=n -DSPIN=n.
 */
	.set	RAM, 0x01000000
	.set	COUNTER, 0x6000

	.section .text
	.code16
start16:
	cli
	lgdtl	%cs:(gdt_pointer - start16)
	movl	%cr0, %eax
	orl	$1, %eax
	movl	%eax, %cr0
	ljmpl	$0x08, $start32

	.code32
start32:
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$0x1000, %edi		/* clear the four tables */
	xorl	%eax, %eax
	movl	$0x1000, %ecx
	rep	stosl
	movl	$0x2007, 0x1000		/* present, writable, user */
	movl	$0x3007, 0x2000		/* first GiB */
	movl	$0x4007, 0x2018		/* fourth GiB: this ROM */
	movl	$0x3000, %edi
	movl	$0x87, %eax		/* 2 MiB pages */
	movl	$512, %ecx
1:	movl	%eax, (%edi)
	movl	$0, 4(%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	loop	1b
	movl	$0xffe00087, 0x4ff8	/* the last 2 MiB below 4 GiB */
	movl	%cr4, %eax
	orl	$0x20, %eax		/* PAE */
	movl	%eax, %cr4
	movl	$0x1000, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	/* EFER */
	rdmsr
	orl	$0x100, %eax		/* LME */
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000000, %eax
	movl	%eax, %cr0
	ljmpl	$0x18, $start64

	.code64
start64:
	xorl	%eax, %eax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movq	$0x8000, %rsp
	pushq	$0x2b			/* ss: user data */
	pushq	$0x8000			/* rsp */
	pushq	$0x2			/* rflags: interrupts stay off */
	pushq	$0x33			/* cs: user code */
	movl	$user, %eax
	pushq	%rax
	iretq

user:
	movq	$88172645463325252, %rsi	/* xorshift64 */
1:	movq	%rsi, %rax
	shlq	$13, %rax
	xorq	%rax, %rsi
	movq	%rsi, %rax
	shrq	$7, %rax
	xorq	%rax, %rsi
	movq	%rsi, %rax
	shlq	$17, %rax
	xorq	%rax, %rsi
	movq	%rsi, %rax
	xorl	%edx, %edx
	movl	$PAGES, %ecx
	divq	%rcx
	shlq	$12, %rdx
	incq	RAM(%rdx)
	incq	COUNTER
	movl	$SPIN, %ecx
2:	pause
	decl	%ecx
	jnz	2b
	jmp	1b

	.balign 8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* 08: 32-bit code */
	.quad	0x00cf93000000ffff	/* 10: data */
	.quad	0x00af9b000000ffff	/* 18: 64-bit code */
	.quad	0
	.quad	0x00cff3000000ffff	/* 28: user data */
	.quad	0x00affb000000ffff	/* 30: user 64-bit code */
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt

	.org	0xfff0
	.code16
reset:
	.byte	0xe9			/* jmp start16, relative: cs base is 0xffff0000 until a far jump */
	.word	start16 - (reset + 3)
	.org	0x10000

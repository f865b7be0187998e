import { Global, Module, type DynamicModule } from '@nestjs/common';
import { APP_FILTER, APP_GUARD } from '@nestjs/core';
import type { DataSource } from 'typeorm';
import { AdminModule, problemErrors } from './admin';
import { AgentChannelModule, agentErrors } from './agent-channel';
import { AssistantsModule } from './assistants';
import { SecretBox, Shutdown } from './common';
import { ErrorFilter, Strangers } from './common/http';
import { BlobLinks, BlobsModule } from './blobs';
import { Config } from './config';
import { DatabaseModule } from './database';
import { FairnessModule } from './fairness';
import { DialogueAssistantModule, envelopeErrors } from './dialogue-assistant';
import { ImModule, tokenErrors } from './im';
import { MessagesModule } from './messages';
import { ModelServicesModule } from './model-services';
import { ObservabilityModule } from './observability';
import { openAiErrors, OpenAiMediaModule, OpenAiModule } from './openai';
import { Outbound, type NameLookup } from './outbound';
import { Quickstart } from './quickstart';
import { RealtimeModule } from './realtime';
import { SealedValues, toolSecretsOf, webhookSecretsOf } from './sealed-values';
import { Authenticator, AuthGuard, RootKey, TenancyModule, UserTokens } from './tenancy';
import { ToolSecrets, ToolsModule } from './tools';
import { LimitsSource, UsageModule } from './usage';
import { SecretOpener, WebhooksModule } from './webhooks';

/** What is decided before the application: the environment, the database, the secrets. */
export interface Foundations {
  readonly config: Config;
  readonly dataSource: DataSource;
  readonly strangers: Strangers;
  readonly secretKey: string;
  /** What it sealed and signed is read, too. */
  readonly previousSecretKey?: string | undefined;
  readonly rootKey: string | undefined;
  /** How names are resolved for connections to others; without it as the system does. */
  readonly lookup?: NameLookup;
}

/** Every wire's shape of a failure. */
export const errorFilter = new ErrorFilter([
  envelopeErrors,
  problemErrors,
  tokenErrors,
  agentErrors,
  openAiErrors,
]);

/** Config and secrets, for every module. */
@Global()
@Module({})
class FoundationsModule {
  static with(foundations: Foundations): DynamicModule {
    const { config, strangers, secretKey, previousSecretKey, rootKey, lookup } = foundations;
    const box = new SecretBox(secretKey, previousSecretKey);
    return {
      module: FoundationsModule,
      providers: [
        { provide: Config, useValue: config },
        Shutdown,
        { provide: Strangers, useValue: strangers },
        { provide: Outbound, useFactory: () => new Outbound(config, lookup) },
        { provide: SecretBox, useValue: box },
        { provide: SecretOpener, useValue: webhookSecretsOf(box) },
        { provide: ToolSecrets, useValue: toolSecretsOf(box) },
        { provide: RootKey, useValue: new RootKey(rootKey) },
        { provide: UserTokens, useValue: new UserTokens(secretKey, previousSecretKey) },
        { provide: BlobLinks, useValue: new BlobLinks(secretKey, previousSecretKey) },
        {
          provide: LimitsSource,
          inject: [Authenticator],
          useFactory: (authenticator: Authenticator): LimitsSource => ({
            of: (principal) => authenticator.limitsOf(principal),
          }),
        },
      ],
      exports: [
        Config,
        Shutdown,
        Strangers,
        Outbound,
        SecretBox,
        SecretOpener,
        ToolSecrets,
        RootKey,
        UserTokens,
        BlobLinks,
        LimitsSource,
      ],
    };
  }
}

/** Table of contents. */
@Module({})
export class AppModule {
  static with(foundations: Foundations): DynamicModule {
    return {
      module: AppModule,
      imports: [
        FoundationsModule.with(foundations),
        DatabaseModule.with(foundations.dataSource),
        RealtimeModule,
        FairnessModule,
        ObservabilityModule,
        TenancyModule,
        MessagesModule,
        UsageModule,
        AssistantsModule,
        BlobsModule,
        ModelServicesModule,
        ToolsModule,
        DialogueAssistantModule,
        WebhooksModule,
        ImModule,
        AgentChannelModule,
        OpenAiModule,
        OpenAiMediaModule,
        AdminModule,
      ],
      providers: [
        Quickstart,
        SealedValues,
        { provide: APP_GUARD, useClass: AuthGuard },
        { provide: APP_FILTER, useValue: errorFilter },
      ],
    };
  }
}

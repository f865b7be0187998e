import { Global, Module, type DynamicModule } from '@nestjs/common';
import { APP_FILTER, APP_GUARD } from '@nestjs/core';
import type { DataSource } from 'typeorm';
import { AdminModule, problemErrors } from './admin';
import { AgentChannelModule, agentErrors } from './agent-channel';
import { AssistantsModule } from './assistants';
import { ErrorFilter } from './common/http';
import { BlobLinks, BlobsModule } from './blobs';
import { Config } from './config';
import { DatabaseModule } from './database';
import { FairnessModule } from './fairness';
import { DialogueAssistantModule, envelopeErrors } from './dialogue-assistant';
import { ImModule, tokenErrors } from './im';
import { MessagesModule } from './messages';
import { ModelServicesModule, SecretBox } from './model-services';
import { ObservabilityModule } from './observability';
import { openAiErrors, OpenAiMediaModule, OpenAiModule } from './openai';
import { Quickstart } from './quickstart';
import { RealtimeModule } from './realtime';
import { Authenticator, AuthGuard, RootKey, TenancyModule, UserTokens } from './tenancy';
import { ToolSecrets, ToolsModule } from './tools';
import { LimitsSource, UsageModule } from './usage';
import { SecretOpener, WebhooksModule } from './webhooks';

/** Secrets of webhooks, sealed in the installation's box. */
function openerOf(box: SecretBox): SecretOpener {
  return {
    seal: (secret, id) => box.seal(secret, `webhook:${id}`),
    open: (sealed, id) => box.open(sealed, `webhook:${id}`),
  };
}

/** Headers of tool sources, sealed in the installation's box. */
function toolSecretsOf(box: SecretBox): ToolSecrets {
  return {
    seal: (text, id) => box.seal(text, `tool:${id}`),
    open: (sealed, id) => box.open(sealed, `tool:${id}`),
  };
}

/** What is decided before the application: the environment, the database, the secrets. */
export interface Foundations {
  readonly config: Config;
  readonly dataSource: DataSource;
  readonly secretKey: string;
  readonly rootKey: string | undefined;
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
  static with({ config, secretKey, rootKey }: Foundations): DynamicModule {
    return {
      module: FoundationsModule,
      providers: [
        { provide: Config, useValue: config },
        { provide: SecretBox, useValue: new SecretBox(secretKey) },
        { provide: SecretOpener, useValue: openerOf(new SecretBox(secretKey)) },
        { provide: ToolSecrets, useValue: toolSecretsOf(new SecretBox(secretKey)) },
        { provide: RootKey, useValue: new RootKey(rootKey) },
        { provide: UserTokens, useValue: new UserTokens(secretKey) },
        { provide: BlobLinks, useValue: new BlobLinks(secretKey) },
        {
          provide: LimitsSource,
          inject: [Authenticator],
          useFactory: (authenticator: Authenticator): LimitsSource => ({
            of: (principal) => authenticator.limitsOf(principal),
          }),
        },
      ],
      exports: [Config, SecretBox, SecretOpener, ToolSecrets, RootKey, UserTokens, BlobLinks, LimitsSource],
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
        { provide: APP_GUARD, useClass: AuthGuard },
        { provide: APP_FILTER, useValue: errorFilter },
      ],
    };
  }
}
